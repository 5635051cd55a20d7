//! When the journal's syncs began and ended, as the store's trace tells.

use std::sync::{Mutex, Once, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

/// One sync of the journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sync {
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
}

#[derive(Debug, Default)]
struct Seen {
    began: Option<Instant>,
    syncs: Vec<Sync>,
}

fn seen() -> std::sync::MutexGuard<'static, Seen> {
    static SEEN: OnceLock<Mutex<Seen>> = OnceLock::new();
    let seen = SEEN.get_or_init(Mutex::default).lock();
    seen.unwrap_or_else(PoisonError::into_inner)
}

/// Listens from now on; every other event and span stays off.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing::subscriber::set_global_default(Listener).expect("the only listener");
    });
    take();
}

/// The syncs since the last look, in order.
pub(crate) fn take() -> Vec<Sync> {
    std::mem::take(&mut seen().syncs)
}

/// How long syncs took: the median and the 99th percentile, in microseconds.
pub(crate) fn quantiles_us(syncs: &[Sync]) -> (u128, u128) {
    let mut took: Vec<_> = syncs.iter().map(|sync| sync.ended - sync.began).collect();
    took.sort_unstable();
    let at = |hundredths: usize| {
        let last = took.len().saturating_sub(1);
        took.get(last * hundredths / 100)
            .map_or(0, Duration::as_micros)
    };
    (at(50), at(99))
}

struct Listener;

fn is_about_groups(metadata: &Metadata<'_>) -> bool {
    metadata.is_event() && matches!(metadata.name(), "group_written" | "group_durable")
}

impl Subscriber for Listener {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if is_about_groups(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_about_groups(metadata)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let now = Instant::now();
        let mut seen = seen();
        if event.metadata().name() == "group_written" {
            seen.began = Some(now);
        } else if let Some(began) = seen.began.take() {
            seen.syncs.push(Sync { began, ended: now });
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
