//! Gradient descent on the map, with scikit-learn's constants.

use super::affinity::Affinities;
use super::repulsion::{Push, barnes_hut, exact};
use super::{Tsne, TsneConfig};
use rayon::prelude::*;

/// Iterations with exaggerated attraction, and how long one may do without progress in them.
const EXPLORATION: usize = 250;
/// Iterations without progress after which the rest is given up.
const PATIENCE: usize = 300;
/// Iterations between two looks at the divergence.
const CHECK_EVERY: usize = 50;
/// A gradient so short ends the descent.
const MIN_GRAD_NORM: f64 = 1e-7;
const MIN_GAIN: f64 = 0.01;
/// What a probability is at least where its logarithm is taken.
const EPSILON: f64 = f64::EPSILON;

/// Moves the points from `start` until the iterations are done or nothing moves.
pub(super) fn descend(
    affinities: &Affinities,
    start: Vec<[f64; 2]>,
    config: &TsneConfig,
    progress: &mut dyn FnMut(usize),
) -> Tsne {
    let n = affinities.len();
    let automatic = (n as f64 / config.early_exaggeration / 4.0).max(50.0);
    let mut map = Map {
        affinities,
        points: start,
        rate: config.learning_rate.unwrap_or(automatic),
        angle: (n > config.exact_up_to).then_some(config.angle),
    };
    let explored = config.iterations.min(EXPLORATION);
    let first = Phase {
        iterations: 0..explored,
        momentum: 0.5,
        exaggeration: config.early_exaggeration,
        patience: EXPLORATION,
    };
    let mut done = map.run(first, progress);
    if config.iterations > explored {
        let second = Phase {
            iterations: done..config.iterations,
            momentum: 0.8,
            exaggeration: 1.0,
            patience: PATIENCE,
        };
        done = map.run(second, progress);
    }
    let kl = map.divergence(1.0, map.gradient(1.0).1);
    Tsne {
        points: map.places(),
        kl,
        iterations: done,
    }
}

struct Phase {
    iterations: std::ops::Range<usize>,
    momentum: f64,
    exaggeration: f64,
    patience: usize,
}

struct Map<'a> {
    affinities: &'a Affinities,
    points: Vec<[f64; 2]>,
    rate: f64,
    /// Barnes and Hut's angle; `None`: exact.
    angle: Option<f64>,
}

impl Map<'_> {
    /// One phase of the descent; the number of iterations done in all.
    fn run(&mut self, phase: Phase, progress: &mut dyn FnMut(usize)) -> usize {
        let mut updates = vec![[0f64; 2]; self.points.len()];
        let mut gains = vec![[1f64; 2]; self.points.len()];
        let (mut best, mut best_at) = (f64::INFINITY, phase.iterations.start);
        let mut done = phase.iterations.start;
        for iteration in phase.iterations {
            let (gradient, z) = self.gradient(phase.exaggeration);
            let check = (iteration + 1).is_multiple_of(CHECK_EVERY);
            let kl = check.then(|| self.divergence(phase.exaggeration, z));
            for (((point, update), gain), gradient) in self
                .points
                .iter_mut()
                .zip(&mut updates)
                .zip(&mut gains)
                .zip(&gradient)
            {
                for c in 0..2 {
                    gain[c] = if update[c] * gradient[c] < 0.0 {
                        gain[c] + 0.2
                    } else {
                        (gain[c] * 0.8).max(MIN_GAIN)
                    };
                    update[c] = phase.momentum * update[c] - self.rate * gain[c] * gradient[c];
                    point[c] += update[c];
                }
            }
            done = iteration + 1;
            progress(done);
            if let Some(kl) = kl {
                if kl < best {
                    (best, best_at) = (kl, iteration);
                } else if iteration - best_at > phase.patience {
                    break;
                }
                let squares = gradient.iter().flatten().map(|g| g * g);
                if squares.sum::<f64>().sqrt() <= MIN_GRAD_NORM {
                    break;
                }
            }
        }
        done
    }

    fn places(&self) -> Vec<[f32; 2]> {
        self.points
            .iter()
            .map(|point| point.map(|x| x as f32))
            .collect()
    }

    /// Gradient of the divergence with attraction times `exaggeration`, and Z, the sum of all w.
    fn gradient(&self, exaggeration: f64) -> (Vec<[f64; 2]>, f64) {
        let points = self.places();
        let pushes: Vec<Push> = match self.angle {
            None => exact(&points),
            Some(angle) => barnes_hut(&points, angle),
        };
        let z = pushes.iter().map(|push| push.z).sum::<f64>().max(EPSILON);
        let gradient = pushes.par_iter().enumerate().map(|(i, push)| {
            let pull = self.pull(&points, i);
            [0, 1].map(|c| 4.0 * (exaggeration * pull[c] - push.force[c] / z))
        });
        (gradient.collect(), z)
    }

    /// Σ p·w·(difference) over the neighbours of a point, w = 1 / (1 + distance²).
    fn pull(&self, points: &[[f32; 2]], i: usize) -> [f64; 2] {
        let (columns, values) = self.affinities.row(i);
        let (mut x, mut y) = (0f64, 0f64);
        for (&j, &p) in columns.iter().zip(values) {
            let (dx, dy, w) = between(points[i], points[j as usize]);
            x += f64::from(p * w * dx);
            y += f64::from(p * w * dy);
        }
        [x, y]
    }

    /// Kullback and Leibler's divergence of the map from the affinities times `exaggeration`.
    fn divergence(&self, exaggeration: f64, z: f64) -> f64 {
        let points = self.places();
        let of_rows: Vec<f64> = (0..points.len())
            .into_par_iter()
            .map(|i| {
                let (columns, values) = self.affinities.row(i);
                let part = |(&j, &p): (&u32, &f32)| {
                    let q = f64::from(between(points[i], points[j as usize]).2) / z;
                    let p = exaggeration * f64::from(p);
                    p * (p.max(EPSILON) / q.max(EPSILON)).ln()
                };
                columns.iter().zip(values).map(part).sum()
            })
            .collect();
        of_rows.iter().sum()
    }
}

/// Differences along both axes, and w = 1 / (1 + distance²).
fn between([px, py]: [f32; 2], [qx, qy]: [f32; 2]) -> (f32, f32, f32) {
    let (dx, dy) = (px - qx, py - qy);
    (dx, dy, 1.0 / (1.0 + (dx * dx + dy * dy)))
}
