//! The arithmetic of backoff.

use std::time::Duration;

use proptest::prelude::*;

use super::retry::Backoff;

fn steady(initial_ms: u64, factor: f64, max_ms: u64) -> Backoff {
    Backoff {
        initial: Duration::from_millis(initial_ms),
        factor,
        max: Duration::from_millis(max_ms),
        jitter: 0.0,
    }
}

#[test]
fn waits_grow_by_the_factor_up_to_the_longest() {
    let backoff = steady(1_000, 2.0, 10_000);
    for (failures, wait_ms) in [
        (1, 1_000),
        (2, 2_000),
        (3, 4_000),
        (4, 8_000),
        (5, 10_000),
        (6, 10_000),
    ] {
        assert_eq!(backoff.wait_ms(failures, 0.0), wait_ms, "{failures}");
    }
    // Nothing has failed yet: as after the first failure.
    assert_eq!(backoff.wait_ms(0, 0.0), 1_000);
    assert_eq!(steady(500, 1.0, 10_000).wait_ms(9, 0.0), 500);
    assert_eq!(
        Backoff::fixed(Duration::from_secs(7)).wait_ms(1_000, 0.9),
        7_000
    );
    // A first wait beyond the longest is the longest.
    assert_eq!(steady(20_000, 2.0, 10_000).wait_ms(1, 0.0), 10_000);
}

#[test]
fn the_default_is_what_it_says() {
    let backoff = Backoff::default();
    // 1 s, doubling, at most 5 min, a fifth of it random.
    for (failures, longest, shortest) in [
        (1, 1_000, 800),
        (2, 2_000, 1_600),
        (9, 256_000, 204_800),
        (10, 300_000, 240_000),
    ] {
        assert_eq!(backoff.wait_ms(failures, 0.0), longest, "{failures}");
        let found = backoff.wait_ms(failures, 1.0);
        // Fractions of a millisecond are cut.
        assert!(
            (shortest - 1..=shortest).contains(&found),
            "{failures}: {found}"
        );
    }
}

#[test]
fn huge_exponents_stay_at_the_longest_wait() {
    for failures in [1_100, 1_000_000, i32::MAX as u32, u32::MAX] {
        assert_eq!(
            steady(1, 1_000.0, 60_000).wait_ms(failures, 0.0),
            60_000,
            "{failures}"
        );
        assert_eq!(
            steady(1, 1.0, 60_000).wait_ms(failures, 0.0),
            1,
            "{failures}"
        );
    }
    // Ten years is the longest that is accepted.
    assert_eq!(
        steady(1, 1_000.0, 316_224_000_000).wait_ms(u32::MAX, 0.0),
        316_224_000_000
    );
}

#[test]
fn nothing_grows_from_nothing() {
    for failures in [0, 1, 2, 5_000, u32::MAX] {
        assert_eq!(
            steady(0, 1_000.0, 60_000).wait_ms(failures, 0.0),
            0,
            "{failures}"
        );
    }
    assert_eq!(steady(1_000, 2.0, 0).wait_ms(3, 0.0), 0);
}

#[test]
fn randomness_out_of_range_stays_in_bounds() {
    let backoff = Backoff {
        jitter: 1.0,
        ..steady(1_000, 2.0, 10_000)
    };
    assert_eq!(backoff.wait_ms(1, 0.0), 1_000);
    assert_eq!(backoff.wait_ms(1, 1.0), 0);
    assert_eq!(backoff.wait_ms(1, -5.0), 1_000);
    assert_eq!(backoff.wait_ms(1, 5.0), 0);
    assert_eq!(backoff.wait_ms(1, f64::NAN), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_wait_is_between_its_jittered_part_and_the_longest(
        initial_ms in 0_u64..100_000,
        factor in 1.0_f64..1_000.0,
        max_ms in 0_u64..100_000_000,
        jitter in 0.0_f64..=1.0,
        failures in any::<u32>(),
        random in 0.0_f64..1.0,
    ) {
        let backoff = Backoff { jitter, ..steady(initial_ms, factor, max_ms) };
        let found = backoff.wait_ms(failures, random);
        prop_assert!(found <= max_ms);
        if failures <= 1 {
            prop_assert!(found <= initial_ms);
        }
        // It never falls below what the jitter may take away from the first wait.
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers")]
        let least = ((initial_ms.min(max_ms)) as f64 * (1.0 - jitter)).floor() as u64;
        prop_assert!(found + 1 >= least, "{} < {}", found, least);
    }

    #[test]
    fn without_jitter_waits_never_shrink(
        initial_ms in 0_u64..100_000,
        factor in 1.0_f64..1_000.0,
        max_ms in 0_u64..100_000_000,
        failures in 1_u32..2_000,
    ) {
        let backoff = steady(initial_ms, factor, max_ms);
        prop_assert!(backoff.wait_ms(failures, 0.0) <= backoff.wait_ms(failures + 1, 0.0));
    }
}
