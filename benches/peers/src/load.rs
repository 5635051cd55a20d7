//! Closed-loop load: so many callers, each with one call at a time.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What a load measured.
#[derive(Debug, Clone)]
pub struct Measured {
    /// From the first call to the end of what `finish` waited for.
    pub elapsed: Duration,
    /// Of each call that was answered, sorted.
    pub latencies_us: Vec<u64>,
}

impl Measured {
    pub fn per_second(&self) -> f64 {
        self.latencies_us.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// A latency at a quantile in hundredths.
    pub fn quantile_us(&self, hundredths: usize) -> u64 {
        let last = self.latencies_us.len().saturating_sub(1);
        let at = self.latencies_us.get(last * hundredths / 100);
        at.copied().unwrap_or(0)
    }
}

/// Runs callers for a time. `call` is given the caller's number and the number of its call;
/// `finish` is waited for before the clock stops, so that a burst into a buffer is no figure.
pub async fn run<C, F>(
    callers: usize,
    time: Duration,
    call: C,
    finish: impl Future<Output = ()>,
) -> Measured
where
    C: Fn(usize, u64) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send,
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
    let elapsed = start.elapsed();
    latencies_us.sort_unstable();
    Measured {
        elapsed,
        latencies_us,
    }
}
