//! Keys taken apart again, strictly: what no builder makes is no key.

use super::{Row, kind};
use crate::model::{ContentHash, Incarnation, OwnerNumber, ProcessOriginator, SessionScope};

/// What a key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parsed {
    Id(String),
    Head(Row),
    Body(Row),
    State(Row),
    Grant {
        scope: SessionScope,
        row: Row,
    },
    Granted {
        row: Row,
        scope: SessionScope,
    },
    Originator {
        originator: ProcessOriginator,
        row: Row,
    },
    Parent {
        parent: Incarnation,
        row: Row,
    },
    Running(Row),
    Feed(u64),
    Replay {
        incarnation: Incarnation,
        key: String,
    },
    Owner(OwnerNumber),
    Env(ContentHash),
    Wake {
        scope: SessionScope,
        position: u64,
    },
    WakeDedupe {
        scope: SessionScope,
        key: String,
    },
    WakeOf {
        row: Row,
        position: u64,
    },
    /// On which process, if on one.
    Effect(String),
    WakeTarget(Row),
    Watched {
        scope: SessionScope,
        row: Row,
    },
    Tombstone(Incarnation),
    FeedFloor,
    EnvUsers(ContentHash),
    Remains(Incarnation),
    FeedEpoch(u64),
    Age,
}

/// Takes a key apart; `None` if its kind is unknown or it is not laid out as its kind is.
pub(crate) fn parse(key: &[u8]) -> Option<Parsed> {
    let (kind, rest) = key.split_first()?;
    let mut parts = Parts(rest);
    let parsed = match *kind {
        kind::ID => Parsed::Id(parts.text()?),
        kind::HEAD => Parsed::Head(parts.row()?),
        kind::BODY => Parsed::Body(parts.row()?),
        kind::STATE => Parsed::State(parts.row()?),
        kind::GRANT => Parsed::Grant {
            scope: parts.scope()?,
            row: parts.row()?,
        },
        kind::GRANTED => Parsed::Granted {
            row: parts.row()?,
            scope: parts.scope()?,
        },
        kind::ORIGINATOR => Parsed::Originator {
            originator: parts.originator()?,
            row: parts.row()?,
        },
        kind::PARENT => Parsed::Parent {
            parent: Incarnation(parts.number()?),
            row: parts.row()?,
        },
        kind::RUNNING => Parsed::Running(parts.row()?),
        kind::FEED => Parsed::Feed(parts.number()?),
        kind::REPLAY => Parsed::Replay {
            incarnation: Incarnation(parts.number()?),
            key: parts.text()?,
        },
        kind::OWNER => Parsed::Owner(OwnerNumber(parts.number()?)),
        kind::ENV => Parsed::Env(parts.hash()?),
        kind::WAKE => Parsed::Wake {
            scope: parts.scope()?,
            position: parts.number()?,
        },
        kind::WAKE_DEDUPE => Parsed::WakeDedupe {
            scope: parts.scope()?,
            key: parts.text()?,
        },
        kind::WAKE_OF => Parsed::WakeOf {
            row: parts.row()?,
            position: parts.number()?,
        },
        kind::EFFECT => Parsed::Effect(parts.effect()?),
        kind::WAKE_TARGET => Parsed::WakeTarget(parts.row()?),
        kind::WATCHED => Parsed::Watched {
            scope: parts.scope()?,
            row: parts.row()?,
        },
        kind::TOMBSTONE => Parsed::Tombstone(Incarnation(parts.number()?)),
        kind::FEED_FLOOR => Parsed::FeedFloor,
        kind::ENV_USERS => Parsed::EnvUsers(parts.hash()?),
        kind::REMAINS => Parsed::Remains(Incarnation(parts.number()?)),
        kind::FEED_EPOCH => Parsed::FeedEpoch(parts.number()?),
        kind::AGE => Parsed::Age,
        _ => return None,
    };
    parts.0.is_empty().then_some(parsed)
}

struct Parts<'a>(&'a [u8]);

impl Parts<'_> {
    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<String> {
        let length = u16::from_be_bytes(self.take(2)?.try_into().ok()?);
        let text = std::str::from_utf8(self.take(usize::from(length))?).ok()?;
        Some(text.to_owned())
    }

    fn row(&mut self) -> Option<Row> {
        Row::from_bytes(self.take(Row::LEN)?)
    }

    fn hash(&mut self) -> Option<ContentHash> {
        Some(ContentHash(self.take(32)?.try_into().ok()?))
    }

    fn scope(&mut self) -> Option<SessionScope> {
        Some(SessionScope {
            session_id: self.text()?,
            agent_frame_id: match self.byte()? {
                0 => None,
                1 => Some(self.text()?),
                _ => return None,
            },
        })
    }

    fn originator(&mut self) -> Option<ProcessOriginator> {
        Some(match self.byte()? {
            b'h' => ProcessOriginator::host_scope(self.text()?),
            b's' => ProcessOriginator::session(self.scope()?),
            _ => return None,
        })
    }

    fn effect(&mut self) -> Option<String> {
        let process_id = self.text()?;
        for _ in 0..6 {
            self.text()?;
        }
        Some(process_id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;

    const ROW: Row = Row {
        created_at_ms: 7,
        incarnation: Incarnation(3),
    };

    /// One key of each kind, and what it says.
    fn one_of_each() -> Vec<(Bytes, Parsed)> {
        let scope = SessionScope::new("s").with_frame("f");
        let root = SessionScope::new("s");
        let originator = ProcessOriginator::session(root.clone());
        let host = ProcessOriginator::host_scope("h");
        let env = ContentHash([9; 32]);
        let effect_key = EffectKey::Signal {
            process_id: "p".into(),
            signal_name: "n".into(),
            signal_id: "i".into(),
        };
        let replay_key = "r".to_owned();
        let parent = Incarnation(1);
        vec![
            (id("p"), Parsed::Id("p".into())),
            (head(ROW), Parsed::Head(ROW)),
            (body(ROW), Parsed::Body(ROW)),
            (state(ROW), Parsed::State(ROW)),
            (
                grant(&scope, ROW),
                Parsed::Grant {
                    scope: scope.clone(),
                    row: ROW,
                },
            ),
            (
                granted(ROW, &root),
                Parsed::Granted {
                    row: ROW,
                    scope: root.clone(),
                },
            ),
            (
                super::super::originator(&originator, ROW).unwrap(),
                Parsed::Originator {
                    originator,
                    row: ROW,
                },
            ),
            (
                super::super::originator(&host, ROW).unwrap(),
                Parsed::Originator {
                    originator: host,
                    row: ROW,
                },
            ),
            (child(parent, ROW), Parsed::Parent { parent, row: ROW }),
            (running(ROW), Parsed::Running(ROW)),
            (feed(5), Parsed::Feed(5)),
            (
                replay(ROW.incarnation, &replay_key),
                Parsed::Replay {
                    incarnation: ROW.incarnation,
                    key: replay_key,
                },
            ),
            (owner(OwnerNumber(6)), Parsed::Owner(OwnerNumber(6))),
            (super::super::env(&env), Parsed::Env(env)),
            (
                wake(&root, 8),
                Parsed::Wake {
                    scope: root.clone(),
                    position: 8,
                },
            ),
            (
                wake_dedupe(&scope, "k"),
                Parsed::WakeDedupe {
                    scope: scope.clone(),
                    key: "k".into(),
                },
            ),
            (
                wake_of(ROW, 8),
                Parsed::WakeOf {
                    row: ROW,
                    position: 8,
                },
            ),
            (
                effect(&ExecutionScope::turn("s", "t"), &effect_key),
                Parsed::Effect("p".into()),
            ),
            (wake_target(ROW), Parsed::WakeTarget(ROW)),
            (
                watched(&root, ROW),
                Parsed::Watched {
                    scope: root,
                    row: ROW,
                },
            ),
            (
                tombstone(ROW.incarnation),
                Parsed::Tombstone(ROW.incarnation),
            ),
            (feed_floor(), Parsed::FeedFloor),
            (env_users(&env), Parsed::EnvUsers(env)),
            (remains(ROW.incarnation), Parsed::Remains(ROW.incarnation)),
            (feed_epoch(4), Parsed::FeedEpoch(4)),
            (age(), Parsed::Age),
        ]
    }

    #[test]
    fn every_kind_of_key_is_read_back_as_it_was_built() {
        for (key, says) in one_of_each() {
            assert_eq!(parse(&key), Some(says), "{key:?}");
        }
    }

    #[test]
    fn a_key_that_is_cut_or_goes_on_is_none() {
        for (key, says) in one_of_each() {
            let longer = [&key[..], &[0]].concat();
            assert_eq!(parse(&longer), None, "{says:?} with a byte behind it");
            for length in 0..key.len() {
                assert_eq!(parse(&key[..length]), None, "{says:?} cut to {length}");
            }
        }
    }

    #[test]
    fn an_unknown_kind_is_none() {
        for kind in (0x1a..=u8::MAX).chain([0]) {
            assert_eq!(parse(&[kind]), None);
        }
    }
}
