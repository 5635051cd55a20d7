//! Load: so many callers, each with one call at a time, as fast as they are answered or at a pace.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

/// What a load measured.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    /// Calls that were answered.
    pub(crate) calls: u64,
    /// From the first call to the end of what `finish` waited for.
    pub(crate) elapsed: Duration,
    latencies_us: Vec<u64>,
    /// Of calls at a pace: when each was due, and how long it took from then.
    paced: Vec<(Instant, u64)>,
}

impl Measured {
    fn of(mut latencies_us: Vec<u64>, elapsed: Duration) -> Self {
        latencies_us.sort_unstable();
        Self {
            calls: latencies_us.len() as u64,
            elapsed,
            latencies_us,
            paced: Vec::new(),
        }
    }

    fn of_paced(paced: Vec<(Instant, u64)>, elapsed: Duration) -> Self {
        let latencies_us = paced.iter().map(|(_, us)| *us).collect();
        Self {
            paced,
            ..Self::of(latencies_us, elapsed)
        }
    }

    /// Those calls at a pace of which nothing fell into any of these times.
    pub(crate) fn but_for(&self, times: &[(Instant, Instant)]) -> Self {
        let apart = |(due, us): &&(Instant, u64)| {
            let done = *due + Duration::from_micros(*us);
            times.iter().all(|(from, to)| done < *from || *due > *to)
        };
        Self::of_paced(
            self.paced.iter().filter(apart).copied().collect(),
            self.elapsed,
        )
    }

    /// Calls a second.
    pub(crate) fn per_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let calls = self.calls as f64;
        calls / self.elapsed.as_secs_f64()
    }

    /// A latency at a quantile in thousandths.
    pub(crate) fn quantile_us(&self, thousandths: usize) -> u64 {
        let last = self.latencies_us.len().saturating_sub(1);
        self.latencies_us
            .get(last * thousandths / 1_000)
            .copied()
            .unwrap_or(0)
    }
}

/// Runs callers for a time. `call` is given the caller's number and the number of its call;
/// `finish` is waited for before the clock stops, so that a burst into a buffer is no figure.
pub(crate) async fn run<C, F, D>(callers: usize, time: Duration, call: C, finish: D) -> Measured
where
    C: Fn(usize, u64) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send,
    D: Future<Output = ()>,
{
    let call = Arc::new(call);
    let stop = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (call, stop) = (Arc::clone(&call), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    let sent = Instant::now();
                    call(caller, number).await;
                    latencies.push(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX));
                    number += 1;
                }
                latencies
            })
        })
        .collect();
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut latencies_us = Vec::new();
    for task in tasks {
        latencies_us.extend(task.await.expect("a caller"));
    }
    finish.await;
    Measured::of(latencies_us, start.elapsed())
}

/// Runs callers at a pace, each with one call at a time, until `until` is over. A latency counts
/// from when the call was due: a stall shows in every call that had to wait behind it.
pub(crate) async fn paced<C, F, U>(callers: usize, per_second: f64, until: U, call: C) -> Measured
where
    C: Fn(usize, u64) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
    U: Future<Output = ()>,
{
    let call = Arc::new(call);
    let stop = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let (pacers, tasks): (Vec<_>, Vec<_>) = (0..callers)
        .map(|caller| {
            let (due, dues) = mpsc::unbounded_channel();
            (
                due,
                tokio::spawn(keep_pace(caller, dues, Arc::clone(&call))),
            )
        })
        .unzip();
    let stopping = Arc::clone(&stop);
    let pacing = std::thread::spawn(move || pace(start, per_second, &pacers, &stopping));
    until.await;
    stop.store(true, Ordering::Relaxed);
    let mut paced = Vec::new();
    for task in tasks {
        paced.extend(task.await.expect("a caller"));
    }
    pacing.join().expect("a pace");
    Measured::of_paced(paced, start.elapsed())
}

/// Tells one caller after the other that its next call is due. A thread of its own: the runtime's
/// timers go by milliseconds, and would make bursts.
fn pace(
    start: Instant,
    per_second: f64,
    callers: &[mpsc::UnboundedSender<Instant>],
    stop: &AtomicBool,
) {
    for number in 0_u32.. {
        let due = start + Duration::from_secs_f64(f64::from(number) / per_second);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // A caller that is gone has failed, which is said where it is waited for.
        let _ = callers[number as usize % callers.len()].send(due);
    }
}

async fn keep_pace<C, F>(
    caller: usize,
    mut dues: mpsc::UnboundedReceiver<Instant>,
    call: Arc<C>,
) -> Vec<(Instant, u64)>
where
    C: Fn(usize, u64) -> F,
    F: Future<Output = ()>,
{
    let mut latencies = Vec::new();
    while let Some(due) = dues.recv().await {
        call(caller, latencies.len() as u64).await;
        let us = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
        latencies.push((due, us));
    }
    latencies
}
