//! How fast a run goes.

use std::time::{Duration, Instant};

/// Rate and data wait since the previous metrics line.
pub(crate) struct Pace {
    since: Instant,
    waited: Duration,
    images: usize,
}

impl Pace {
    pub(crate) fn start() -> Self {
        Self {
            since: Instant::now(),
            waited: Duration::ZERO,
            images: 0,
        }
    }

    pub(crate) fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    pub(crate) fn stepped(&mut self, images: usize) {
        self.images += images;
    }

    pub(crate) fn images_per_s(&self) -> f64 {
        self.images as f64 / self.since.elapsed().as_secs_f64().max(1e-9)
    }

    pub(crate) fn data_wait_frac(&self) -> f64 {
        self.waited.as_secs_f64() / self.since.elapsed().as_secs_f64().max(1e-9)
    }
}
