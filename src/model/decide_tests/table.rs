//! The whole table of states and commands, written by hand.
//!
//! Rows are states, columns commands. A cell says what the command does:
//!
//! | cell | meaning |
//! |---|---|
//! | `+` | its event is appended, the lease stays as it is |
//! | `+A` `+R` `+P` | the same, and the lease is acquired, released, or acquired and released |
//! | `2P` | the request to cancel and the end, together, under a lease that is passed |
//! | `1P` | the end alone (the request stands already), the same way |
//! | `=` | there is nothing to do |
//! | `r` | it was done before, and this is the event |
//! | `T` `S` `C` `I` | refused: already terminal, superseded, conflict, invalid input |

use std::collections::BTreeMap;

use super::cases::{Column, Row};

const TABLES: [&str; 7] = [
    "
                     host host_again host_other host_end owner owner_stale owner_end signal signal_again signal_other
    RerunNew         +    r          C          I        S     S           S         +      r            C
    RerunLive        +    r          C          I        +     S           +R        +      r            C
    RerunWaiting     +    r          C          I        +     S           +R        +      r            C
    RerunBackingOff  +    r          C          I        S     S           S         +      r            C
    RerunReleased    +    r          C          I        S     S           S         +      r            C
    RerunLost        +    r          C          I        +     S           +R        +      r            C
    RerunOwnerLost   +    r          C          I        S     S           S         +      r            C
    RerunNewCancel   +    r          C          I        S     S           S         +      r            C
    RerunLiveCancel  +    r          C          I        +     S           +R        +      r            C
    RerunLostCancel  +    r          C          I        +     S           +R        +      r            C
    RerunNewAbandon  +    r          C          I        S     S           S         +      r            C
    RerunLiveAbandon +    r          C          I        +     S           +R        +      r            C
    RerunLostAbandon +    r          C          I        +     S           +R        +      r            C
    BoundNew         +    r          C          I        S     S           S         +      r            C
    BoundLive        +    r          C          I        +     S           +R        +      r            C
    BoundWaiting     +    r          C          I        +     S           +R        +      r            C
    BoundUnowned     +    r          C          I        S     S           S         +      r            C
    BoundLost        +    r          C          I        +     S           +R        +      r            C
    BoundNewCancel   +    r          C          I        S     S           S         +      r            C
    BoundLiveCancel  +    r          C          I        +     S           +R        +      r            C
    BoundLostCancel  +    r          C          I        +     S           +R        +      r            C
    BoundNewAbandon  +    r          C          I        S     S           S         +      r            C
    BoundLiveAbandon +    r          C          I        +     S           +R        +      r            C
    BoundLostAbandon +    r          C          I        +     S           +R        +      r            C
    ExternalNew      +    r          C          I        S     S           S         +      r            C
    ExternalRef      +    r          C          I        S     S           S         +      r            C
    ExternalCancel   +    r          C          I        S     S           S         +      r            C
    ExternalAbandon  +    r          C          I        S     S           S         +      r            C
    Completed        T    r          C          T        T     T           T         T      r            C
    Failed           T    r          C          T        T     T           T         T      r            C
    Cancelled        T    r          C          T        T     T           T         T      r            C
    Abandoned        T    r          C          T        T     T           T         T      r            C
    ExternalDoneRef  T    r          C          T        T     T           T         T      r            C
    ",
    "
                     cancel abandon same_ref other_ref
    RerunNew         2P     +       +        +
    RerunLive        +      +       +        +
    RerunWaiting     +      +       +        +
    RerunBackingOff  2P     +       +        +
    RerunReleased    2P     +       +        +
    RerunLost        2P     +       +        +
    RerunOwnerLost   2P     +       +        +
    RerunNewCancel   1P     +       +        +
    RerunLiveCancel  =      +       +        +
    RerunLostCancel  1P     +       +        +
    RerunNewAbandon  2P     =       +        +
    RerunLiveAbandon +      =       +        +
    RerunLostAbandon 2P     =       +        +
    BoundNew         2P     +       +        +
    BoundLive        +      +       +        +
    BoundWaiting     +      +       +        +
    BoundUnowned     +      +       +        +
    BoundLost        +      +       +        +
    BoundNewCancel   1P     +       +        +
    BoundLiveCancel  =      +       +        +
    BoundLostCancel  =      +       +        +
    BoundNewAbandon  2P     =       +        +
    BoundLiveAbandon +      =       +        +
    BoundLostAbandon +      =       +        +
    ExternalNew      +      +       +        +
    ExternalRef      +      +       =        C
    ExternalCancel   =      +       +        +
    ExternalAbandon  +      =       +        +
    Completed        =      T       T        T
    Failed           =      T       T        T
    Cancelled        =      T       T        T
    Abandoned        =      T       T        T
    ExternalDoneRef  =      T       =        C
    ",
    "
                     first retry recovery released unclaimed lose
    RerunNew         +A    I     I        I        S         I
    RerunLive        S     S     S        S        S         S
    RerunWaiting     S     S     S        S        S         S
    RerunBackingOff  I     +A    I        +A       S         I
    RerunReleased    I     +A    I        +A       S         I
    RerunLost        I     I     I        I        S         +P
    RerunOwnerLost   I     I     +A       I        S         I
    RerunNewCancel   I     I     I        I        S         I
    RerunLiveCancel  S     S     S        S        S         S
    RerunLostCancel  I     I     I        I        S         +P
    RerunNewAbandon  I     I     I        I        S         I
    RerunLiveAbandon S     S     S        S        S         S
    RerunLostAbandon I     I     I        I        S         +P
    BoundNew         +A    I     I        I        S         I
    BoundLive        I     I     I        I        I         I
    BoundWaiting     I     I     I        I        I         I
    BoundUnowned     I     I     I        I        I         I
    BoundLost        I     I     I        I        I         I
    BoundNewCancel   I     I     I        I        S         I
    BoundLiveCancel  I     I     I        I        I         I
    BoundLostCancel  I     I     I        I        I         I
    BoundNewAbandon  I     I     I        I        S         I
    BoundLiveAbandon I     I     I        I        I         I
    BoundLostAbandon I     I     I        I        I         I
    ExternalNew      I     I     I        I        I         I
    ExternalRef      I     I     I        I        I         I
    ExternalCancel   I     I     I        I        I         I
    ExternalAbandon  I     I     I        I        I         I
    Completed        T     T     T        T        T         T
    Failed           T     T     T        T        T         T
    Cancelled        T     T     T        T        T         T
    Abandoned        T     T     T        T        T         T
    ExternalDoneRef  T     T     T        T        T         T
    ",
    "
                     wait wait_open wait_stale got timed_out dropped end_stale later later_stale
    RerunNew         S    S         S          S   S         S       S         S     S
    RerunLive        +    +         S          +   +         I       S         +R    S
    RerunWaiting     +    I         S          +   +         +       S         +R    S
    RerunBackingOff  S    S         S          S   S         S       S         S     S
    RerunReleased    S    S         S          S   S         S       S         S     S
    RerunLost        +    +         S          +   +         I       S         +R    S
    RerunOwnerLost   S    S         S          S   S         S       S         S     S
    RerunNewCancel   S    S         S          S   S         S       S         S     S
    RerunLiveCancel  +    +         S          +   +         I       S         +R    S
    RerunLostCancel  +    +         S          +   +         I       S         +R    S
    RerunNewAbandon  S    S         S          S   S         S       S         S     S
    RerunLiveAbandon +    +         S          +   +         I       S         +R    S
    RerunLostAbandon +    +         S          +   +         I       S         +R    S
    BoundNew         S    S         S          S   S         S       S         S     S
    BoundLive        +    +         S          +   +         I       S         I     S
    BoundWaiting     +    I         S          +   +         +       S         I     S
    BoundUnowned     S    S         S          S   S         S       S         S     S
    BoundLost        +    +         S          +   +         I       S         I     S
    BoundNewCancel   S    S         S          S   S         S       S         S     S
    BoundLiveCancel  +    +         S          +   +         I       S         I     S
    BoundLostCancel  +    +         S          +   +         I       S         I     S
    BoundNewAbandon  S    S         S          S   S         S       S         S     S
    BoundLiveAbandon +    +         S          +   +         I       S         I     S
    BoundLostAbandon +    +         S          +   +         I       S         I     S
    ExternalNew      S    S         S          S   S         S       S         S     S
    ExternalRef      S    S         S          S   S         S       S         S     S
    ExternalCancel   S    S         S          S   S         S       S         S     S
    ExternalAbandon  S    S         S          S   S         S       S         S     S
    Completed        T    T         T          T   T         T       T         T     T
    Failed           T    T         T          T   T         T       T         T     T
    Cancelled        T    T         T          T   T         T       T         T     T
    Abandoned        T    T         T          T   T         T       T         T     T
    ExternalDoneRef  T    T         T          T   T         T       T         T     T
    ",
    "
                     success fail cancelled drain own_sweep own_request stale
    RerunNew         S       S    S         S     S         S           S
    RerunLive        +R      +R   +R        I     I         I           S
    RerunWaiting     +R      +R   +R        I     I         I           S
    RerunBackingOff  S       S    S         S     S         S           S
    RerunReleased    S       S    S         S     S         S           S
    RerunLost        +R      +R   +R        I     I         I           S
    RerunOwnerLost   S       S    S         S     S         S           S
    RerunNewCancel   S       S    S         S     S         S           S
    RerunLiveCancel  +R      +R   +R        I     I         I           S
    RerunLostCancel  +R      +R   +R        I     I         I           S
    RerunNewAbandon  S       S    S         S     S         S           S
    RerunLiveAbandon +R      +R   +R        I     I         I           S
    RerunLostAbandon +R      +R   +R        I     I         I           S
    BoundNew         S       S    S         S     S         S           S
    BoundLive        +R      +R   +R        +R    I         I           S
    BoundWaiting     +R      +R   +R        +R    I         I           S
    BoundUnowned     S       S    S         S     S         S           S
    BoundLost        +R      +R   +R        +R    I         I           S
    BoundNewCancel   S       S    S         S     S         S           S
    BoundLiveCancel  +R      +R   +R        +R    I         I           S
    BoundLostCancel  +R      +R   +R        +R    I         I           S
    BoundNewAbandon  S       S    S         S     S         S           S
    BoundLiveAbandon +R      +R   +R        +R    I         I           S
    BoundLostAbandon +R      +R   +R        +R    I         I           S
    ExternalNew      S       S    S         S     S         S           S
    ExternalRef      S       S    S         S     S         S           S
    ExternalCancel   S       S    S         S     S         S           S
    ExternalAbandon  S       S    S         S     S         S           S
    Completed        T       T    T         T     T         T           T
    Failed           T       T    T         T     T         T           T
    Cancelled        T       T    T         T     T         T           T
    Abandoned        T       T    T         T     T         T           T
    ExternalDoneRef  T       T    T         T     T         T           T
    ",
    "
                     c_success c_fail c_cancelled c_sweep c_lapse c_request c_drain c_other
    RerunNew         I         +P     I           I       I       I         I       S
    RerunLive        I         S      I           I       I       I         I       S
    RerunWaiting     I         S      I           I       I       I         I       S
    RerunBackingOff  I         +P     I           I       I       I         I       S
    RerunReleased    I         +P     I           I       I       I         I       S
    RerunLost        I         +P     I           I       I       I         I       S
    RerunOwnerLost   I         +P     I           I       I       I         I       S
    RerunNewCancel   I         +P     +P          I       I       I         I       S
    RerunLiveCancel  I         S      S           I       I       I         I       S
    RerunLostCancel  I         +P     +P          I       I       I         I       S
    RerunNewAbandon  I         +P     I           I       I       +P        I       S
    RerunLiveAbandon I         S      I           I       I       S         I       S
    RerunLostAbandon I         +P     I           I       I       +P        I       S
    BoundNew         I         +P     I           I       I       I         I       S
    BoundLive        I         I      I           S       I       I         I       I
    BoundWaiting     I         I      I           S       I       I         I       I
    BoundUnowned     I         I      I           +P      I       I         I       I
    BoundLost        I         I      I           +P      I       I         I       I
    BoundNewCancel   I         +P     +P          I       I       I         I       S
    BoundLiveCancel  I         I      I           S       I       I         I       I
    BoundLostCancel  I         I      I           +P      I       I         I       I
    BoundNewAbandon  I         +P     I           I       I       +P        I       S
    BoundLiveAbandon I         I      I           S       I       S         I       I
    BoundLostAbandon I         I      I           +P      I       +P        I       I
    ExternalNew      I         I      I           I       I       I         I       I
    ExternalRef      I         I      I           I       I       I         I       I
    ExternalCancel   I         I      I           I       I       I         I       I
    ExternalAbandon  I         I      I           I       I       I         I       I
    Completed        T         T      T           T       T       T         T       T
    Failed           T         T      T           T       T       T         T       T
    Cancelled        T         T      T           T       T       T         T       T
    Abandoned        T         T      T           T       T       T         T       T
    ExternalDoneRef  T         T      T           T       T       T         T       T
    ",
    "
                     x_success x_fail h_success h_cancelled h_abandon r_request r_sweep r_success
    RerunNew         I         I      I         I           I         I         I       I
    RerunLive        I         I      I         I           I         I         I       I
    RerunWaiting     I         I      I         I           I         I         I       I
    RerunBackingOff  I         I      I         I           I         I         I       I
    RerunReleased    I         I      I         I           I         I         I       I
    RerunLost        I         I      I         I           I         I         I       I
    RerunOwnerLost   I         I      I         I           I         I         I       I
    RerunNewCancel   I         I      I         I           I         I         I       I
    RerunLiveCancel  I         I      I         I           I         I         I       I
    RerunLostCancel  I         I      I         I           I         I         I       I
    RerunNewAbandon  I         I      I         I           I         I         I       I
    RerunLiveAbandon I         I      I         I           I         I         I       I
    RerunLostAbandon I         I      I         I           I         I         I       I
    BoundNew         I         I      I         I           I         I         I       I
    BoundLive        I         I      I         I           I         I         I       I
    BoundWaiting     I         I      I         I           I         I         I       I
    BoundUnowned     I         I      I         I           I         I         I       I
    BoundLost        I         I      I         I           I         I         I       I
    BoundNewCancel   I         I      I         I           I         I         I       I
    BoundLiveCancel  I         I      I         I           I         I         I       I
    BoundLostCancel  I         I      I         I           I         I         I       I
    BoundNewAbandon  I         I      I         I           I         I         I       I
    BoundLiveAbandon I         I      I         I           I         I         I       I
    BoundLostAbandon I         I      I         I           I         I         I       I
    ExternalNew      +         +      +         +           I         I         I       I
    ExternalRef      +         +      +         +           I         I         I       I
    ExternalCancel   +         +      +         +           I         I         I       I
    ExternalAbandon  +         +      +         +           I         +         I       I
    Completed        T         T      T         T           T         T         T       T
    Failed           T         T      T         T           T         T         T       T
    Cancelled        T         T      T         T           T         T         T       T
    Abandoned        T         T      T         T           T         T         T       T
    ExternalDoneRef  T         T      T         T           T         T         T       T
    ",
];

/// The table, read; panics where a cell is missing or stands twice.
pub(super) fn table() -> BTreeMap<(Row, Column), &'static str> {
    let mut cells = BTreeMap::new();
    for text in TABLES {
        let mut lines = text.lines().filter(|line| !line.trim().is_empty());
        let columns: Vec<Column> = lines
            .next()
            .unwrap()
            .split_whitespace()
            .map(Column::named)
            .collect();
        for line in lines {
            let mut words = line.split_whitespace();
            let row = Row::named(words.next().unwrap());
            let found: Vec<&'static str> = words.collect();
            assert_eq!(found.len(), columns.len(), "cells of {row:?}: {line}");
            for (column, cell) in columns.iter().zip(found) {
                let before = cells.insert((row, *column), cell);
                assert!(before.is_none(), "{row:?} × {column:?} stands twice");
            }
        }
    }
    for row in Row::ALL {
        for column in Column::ALL {
            assert!(
                cells.contains_key(&(*row, *column)),
                "no {row:?} × {column:?}"
            );
        }
    }
    cells
}
