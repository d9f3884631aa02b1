//! Jobs done by several threads, results taken in order, never far ahead.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::decode::panic_message;

type Job<T> = dyn Fn(usize) -> T + Send + Sync;
/// What a job returned, or the message of its panic.
type Outcome<T> = Result<T, String>;

/// Does the jobs of a range of numbers and hands out their results in that order.
///
/// At most `window` results exist that were not handed out. Dropping it ends and joins the
/// threads; a job that has begun is finished first.
pub(crate) struct Ordered<T> {
    next: usize,
    end: usize,
    job: Arc<Job<T>>,
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// A job may be begun, or the threads shall end.
    may_work: Condvar,
    /// A result has come in.
    has_result: Condvar,
}

struct State<T> {
    next_job: usize,
    /// The first number whose job must not be begun yet.
    limit: usize,
    results: BTreeMap<usize, Outcome<T>>,
    stop: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + 'static> Ordered<T> {
    /// Starts the threads; with 0 workers each job is done when its result is asked for.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn new(
        range: Range<usize>,
        workers: usize,
        window: usize,
        job: impl Fn(usize) -> T + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let window = window.max(workers).max(1);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                next_job: range.start,
                limit: range.start.saturating_add(window).min(range.end),
                results: BTreeMap::new(),
                stop: false,
            }),
            may_work: Condvar::new(),
            has_result: Condvar::new(),
        });
        let mut ordered = Self {
            next: range.start,
            end: range.end,
            job: Arc::new(job),
            shared,
            threads: Vec::new(),
        };
        for worker in 0..workers.min(range.len()) {
            let (shared, job) = (ordered.shared.clone(), ordered.job.clone());
            let end = range.end;
            let thread = std::thread::Builder::new()
                .name(format!("selfsame-data-{worker}"))
                .spawn(move || work(&shared, &*job, end))?;
            ordered.threads.push(thread);
        }
        Ok(ordered)
    }

    /// The next result and how long it was waited for; nothing after the last.
    pub(crate) fn next(&mut self) -> Option<(Outcome<T>, Duration)> {
        if self.next >= self.end {
            return None;
        }
        let begun = Instant::now();
        let number = self.next;
        self.next += 1;
        if self.threads.is_empty() {
            return Some((attempt(&*self.job, number), begun.elapsed()));
        }
        let mut state = self.shared.lock();
        let outcome = loop {
            if let Some(outcome) = state.results.remove(&number) {
                break outcome;
            }
            state = self
                .shared
                .has_result
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        };
        state.limit = state.limit.saturating_add(1).min(self.end);
        drop(state);
        self.shared.may_work.notify_one();
        Some((outcome, begun.elapsed()))
    }
}

impl<T> Drop for Ordered<T> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.may_work.notify_all();
        for thread in self.threads.drain(..) {
            // A job's panic was caught and handed out; nothing else in the thread panics.
            let _ = thread.join();
        }
    }
}

fn work<T>(shared: &Shared<T>, job: &Job<T>, end: usize) {
    loop {
        let mut state = shared.lock();
        while !state.stop && state.next_job < end && state.next_job >= state.limit {
            state = shared
                .may_work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.stop || state.next_job >= end {
            // Others may wait for a limit that will not move any more.
            drop(state);
            shared.may_work.notify_all();
            return;
        }
        let number = state.next_job;
        state.next_job += 1;
        drop(state);
        let outcome = attempt(job, number);
        shared.lock().results.insert(number, outcome);
        shared.has_result.notify_one();
    }
}

fn attempt<T>(job: &Job<T>, number: usize) -> Outcome<T> {
    catch_unwind(AssertUnwindSafe(|| job(number))).map_err(|panic| panic_message(&*panic))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn results<T: Send + 'static>(mut ordered: Ordered<T>) -> Vec<Outcome<T>> {
        std::iter::from_fn(|| ordered.next().map(|(outcome, _)| outcome)).collect()
    }

    #[test]
    fn results_come_in_order_for_any_number_of_threads() {
        for workers in [0, 1, 2, 4, 9] {
            let ordered = Ordered::new(3..40, workers, 3, |i| {
                // Later jobs tend to be done first.
                (0..(40 - i) * 2000).fold(i, |a, b| std::hint::black_box(a ^ b ^ b))
            });
            let results: Vec<usize> = results(ordered.unwrap())
                .into_iter()
                .map(Result::unwrap)
                .collect();
            assert_eq!(results, (3..40).collect::<Vec<_>>(), "{workers} workers");
        }
        assert!(results(Ordered::new(5..5, 2, 1, |i| i).unwrap()).is_empty());
    }

    #[test]
    fn no_more_than_the_window_is_done_ahead() {
        let begun = Arc::new(AtomicUsize::new(0));
        let counter = begun.clone();
        let mut ordered = Ordered::new(0..100, 2, 5, move |i| {
            counter.fetch_add(1, Ordering::SeqCst);
            i
        })
        .unwrap();
        for taken in 1..60 {
            ordered.next().unwrap().0.unwrap();
            assert!(begun.load(Ordering::SeqCst) <= taken + 5);
        }
    }

    #[test]
    fn the_whole_window_is_done_ahead_without_being_asked_for() {
        let (begin, begun) = std::sync::mpsc::channel();
        let mut ordered = Ordered::new(0..100, 2, 5, move |i| {
            begin.send(i).unwrap();
            i
        })
        .unwrap();
        let next = || begun.recv_timeout(Duration::from_secs(60)).unwrap();
        let mut seen: Vec<usize> = (0..5).map(|_| next()).collect();
        for taken in 1..=60 {
            ordered.next().unwrap().0.unwrap();
            // Each result that is taken lets one more job begin.
            seen.push(next());
            seen.sort_unstable();
            assert_eq!(seen, (0..taken + 5).collect::<Vec<_>>());
        }
        assert!(begun.try_recv().is_err());
    }

    #[test]
    fn a_panic_is_handed_out_in_its_place() {
        for workers in [0, 2] {
            let ordered = Ordered::new(0..4, workers, 4, |i| {
                assert!(i != 2, "job {i} is broken");
                i
            });
            let results = results(ordered.unwrap());
            assert_eq!(results[1], Ok(1));
            assert!(results[2].as_ref().unwrap_err().contains("job 2 is broken"));
            assert_eq!(results[3], Ok(3));
        }
    }

    #[test]
    fn dropping_it_early_ends_the_threads() {
        let alive = Arc::new(());
        let held = alive.clone();
        let mut ordered = Ordered::new(0..1_000_000, 3, 4, move |i| {
            let _ = &held;
            i
        })
        .unwrap();
        ordered.next().unwrap().0.unwrap();
        drop(ordered);
        // Every thread held the job, and with it the second reference.
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
