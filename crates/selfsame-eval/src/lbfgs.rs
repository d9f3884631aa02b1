//! Minimisation without bounds by L-BFGS with Moré and Thuente's line search.
//!
//! Constants and stopping rules are those of L-BFGS-B 3.0 (Zhu, Byrd, Lu, Nocedal; ACM TOMS 778) as SciPy sets them,
//! so that the path, and not only its end, is that of scikit-learn's `solver="lbfgs"`.

use crate::error::EvalError;
use crate::matrix::dot;
use std::collections::VecDeque;

const MEMORY: usize = 10; // scipy: maxcor
const MAX_TRIALS: usize = 50; // scikit-learn: maxls
const MAX_STEP: f64 = 1e10; // lnsrlb: big
const DECREASE: f64 = 1e-3; // lnsrlb: ftol
const CURVATURE: f64 = 0.9; // lnsrlb: gtol
const INTERVAL: f64 = 0.1; // lnsrlb: xtol

/// When to stop.
pub(crate) struct Stop {
    /// Largest absolute component of the gradient.
    pub(crate) gradient: f64,
    /// Decrease of the value in an iteration, relative to max(|old|, |new|, 1).
    pub(crate) decrease: f64,
    /// Iterations.
    pub(crate) iterations: usize,
}

/// Where it stopped.
pub(crate) struct Minimum {
    pub(crate) x: Vec<f64>,
    pub(crate) iterations: usize,
    /// Whether one of the two tolerances was reached.
    pub(crate) converged: bool,
}

/// Minimises `value_and_gradient(x, gradient) -> value` from `x`.
pub(crate) fn minimize(
    x: Vec<f64>,
    stop: &Stop,
    mut value_and_gradient: impl FnMut(&[f64], &mut [f64]) -> Result<f64, EvalError>,
) -> Result<Minimum, EvalError> {
    let mut g = vec![0.0; x.len()];
    let f = value_and_gradient(&x, &mut g)?;
    let mut at = Iterate { x, f, g };
    let mut memory: VecDeque<Pair> = VecDeque::with_capacity(MEMORY + 1);
    let mut iterations = 0;
    let mut converged = largest(&at.g) <= stop.gradient;
    while !converged {
        let direction = descent(&at.g, &memory);
        let first = if iterations == 0 {
            1.0 / dot(&direction, &direction).sqrt()
        } else {
            1.0
        };
        let Some(step) = line_search(
            &at,
            &direction,
            first.min(MAX_STEP),
            &mut value_and_gradient,
        )?
        else {
            if memory.is_empty() {
                break;
            }
            memory.clear(); // once more along the gradient
            continue;
        };
        let old = std::mem::replace(&mut at, step.to);
        iterations += 1;
        converged = largest(&at.g) <= stop.gradient
            || old.f - at.f <= stop.decrease * old.f.abs().max(at.f.abs()).max(1.0);
        if iterations >= stop.iterations {
            break;
        }
        let sy = (step.end_slope - step.slope) * step.size;
        if sy > f64::EPSILON * -step.slope * step.size {
            if memory.len() == MEMORY {
                memory.pop_front();
            }
            let y: Vec<f64> =
                at.g.iter()
                    .zip(&old.g)
                    .map(|(new, old)| new - old)
                    .collect();
            memory.push_back(Pair {
                s: direction.iter().map(|d| step.size * d).collect(),
                sy,
                yy: dot(&y, &y),
                y,
            });
        }
    }
    Ok(Minimum {
        x: at.x,
        iterations,
        converged,
    })
}

/// Where the function was looked at.
#[derive(Clone)]
struct Iterate {
    x: Vec<f64>,
    f: f64,
    g: Vec<f64>,
}

/// What a line search found.
struct Step {
    to: Iterate,
    /// How many times the direction.
    size: f64,
    /// Along the direction, at the start and at the end.
    slope: f64,
    end_slope: f64,
}

/// A step along `direction` that will do; `None` if it leads upwards, to values that are not finite,
/// or nowhere after so many trials.
fn line_search(
    from: &Iterate,
    direction: &[f64],
    first: f64,
    value_and_gradient: &mut impl FnMut(&[f64], &mut [f64]) -> Result<f64, EvalError>,
) -> Result<Option<Step>, EvalError> {
    let slope = dot(&from.g, direction);
    if slope.is_nan() || slope >= 0.0 {
        return Ok(None);
    }
    let mut search = Search::new(first, from.f, slope);
    let mut to = from.clone();
    for _ in 0..MAX_TRIALS {
        for ((x, old), d) in to.x.iter_mut().zip(&from.x).zip(direction) {
            *x = old + search.step * d;
        }
        to.f = value_and_gradient(&to.x, &mut to.g)?;
        let end_slope = dot(&to.g, direction);
        if !to.f.is_finite() {
            return Ok(None);
        }
        if search.is_over(to.f, end_slope) {
            return Ok(Some(Step {
                to,
                size: search.step,
                slope,
                end_slope,
            }));
        }
    }
    Ok(None)
}

/// A step and the change of the gradient along it.
struct Pair {
    s: Vec<f64>,
    y: Vec<f64>,
    sy: f64,
    yy: f64,
}

/// −H·g by the two-loop recursion, H₀ = (s·y / y·y)·I of the latest pair.
fn descent(g: &[f64], memory: &VecDeque<Pair>) -> Vec<f64> {
    let mut q: Vec<f64> = g.iter().map(|g| -g).collect();
    let mut alphas = [0.0; MEMORY];
    for (pair, alpha) in memory.iter().zip(&mut alphas).rev() {
        *alpha = dot(&pair.s, &q) / pair.sy;
        add_scaled(&mut q, -*alpha, &pair.y);
    }
    if let Some(latest) = memory.back() {
        let scale = latest.sy / latest.yy;
        q.iter_mut().for_each(|q| *q *= scale);
    }
    for (pair, alpha) in memory.iter().zip(&alphas) {
        let beta = dot(&pair.y, &q) / pair.sy;
        add_scaled(&mut q, alpha - beta, &pair.s);
    }
    q
}

fn add_scaled(to: &mut [f64], scale: f64, from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += scale * from;
    }
}

fn largest(g: &[f64]) -> f64 {
    g.iter().fold(0.0, |largest, g| g.abs().max(largest))
}

/// A step with the function's value and slope there.
#[derive(Clone, Copy)]
struct Point {
    step: f64,
    f: f64,
    slope: f64,
}

/// Line search for sufficient decrease and curvature (Moré and Thuente 1994; MINPACK-2 dcsrch).
struct Search {
    /// The step to try next, or, once it is over, the step found.
    step: f64,
    start: Point,
    /// End of the interval with the lowest value so far.
    best: Point,
    other: Point,
    bracketed: bool,
    first_stage: bool,
    width: f64,
    earlier_width: f64,
    low: f64,
    high: f64,
}

impl Search {
    fn new(step: f64, f: f64, slope: f64) -> Search {
        let start = Point {
            step: 0.0,
            f,
            slope,
        };
        Search {
            step,
            start,
            best: start,
            other: start,
            bracketed: false,
            first_stage: true,
            width: MAX_STEP,
            earlier_width: 2.0 * MAX_STEP,
            low: 0.0,
            high: step + 4.0 * step,
        }
    }

    /// Takes value and slope at `step`; true if that step will do, else `step` is the next to try.
    fn is_over(&mut self, f: f64, slope: f64) -> bool {
        let wanted_slope = DECREASE * self.start.slope;
        let wanted_f = self.start.f + self.step * wanted_slope;
        if self.first_stage && f <= wanted_f && slope >= 0.0 {
            self.first_stage = false;
        }
        let stuck = self.bracketed && self.is_narrow();
        let at_max = self.step == MAX_STEP && f <= wanted_f && slope <= wanted_slope;
        let at_min = self.step == 0.0 && (f > wanted_f || slope >= wanted_slope);
        let enough = f <= wanted_f && slope.abs() <= CURVATURE * -self.start.slope;
        if stuck || at_max || at_min || enough {
            return true;
        }

        let tried = Point {
            step: self.step,
            f,
            slope,
        };
        if self.first_stage && f <= self.best.f && f > wanted_f {
            // Search on the function less the wanted decrease.
            let tilt = |p: Point, sign: f64| Point {
                step: p.step,
                f: p.f + sign * p.step * wanted_slope,
                slope: p.slope + sign * wanted_slope,
            };
            (self.best, self.other) = (tilt(self.best, -1.0), tilt(self.other, -1.0));
            self.narrow_by(tilt(tried, -1.0));
            (self.best, self.other) = (tilt(self.best, 1.0), tilt(self.other, 1.0));
        } else {
            self.narrow_by(tried);
        }

        let (a, b) = (self.best.step, self.other.step);
        if self.bracketed {
            if (b - a).abs() >= 0.66 * self.earlier_width {
                self.step = a + 0.5 * (b - a);
            }
            self.earlier_width = self.width;
            self.width = (b - a).abs();
            (self.low, self.high) = (a.min(b), a.max(b));
        } else {
            self.low = self.step + 1.1 * (self.step - a);
            self.high = self.step + 4.0 * (self.step - a);
        }
        self.step = self.step.clamp(0.0, MAX_STEP);
        if self.bracketed && self.is_narrow() {
            self.step = self.best.step;
        }
        false
    }

    fn is_narrow(&self) -> bool {
        self.step <= self.low
            || self.step >= self.high
            || self.high - self.low <= INTERVAL * self.high
    }

    /// Chooses the next step by cubic and quadratic interpolation and updates the interval (dcstep).
    fn narrow_by(&mut self, tried: Point) {
        let (best, other) = (self.best, self.other);
        let opposite = tried.slope * (best.slope / best.slope.abs()) < 0.0;
        let next = if tried.f > best.f {
            self.bracketed = true;
            below_a_higher_value(best, tried)
        } else if opposite {
            self.bracketed = true;
            between_opposite_slopes(best, tried)
        } else if tried.slope.abs() < best.slope.abs() {
            self.past_a_flatter_slope(tried)
        } else if self.bracketed {
            // Lower value, steeper slope of the same sign, with a bound.
            Cubic::through(tried, other).lowest(tried, other)
        } else if tried.step > best.step {
            self.high
        } else {
            self.low
        };

        if tried.f > best.f {
            self.other = tried;
        } else {
            if opposite {
                self.other = best;
            }
            self.best = tried;
        }
        self.step = next;
    }

    /// Lower value, flatter slope of the same sign: the cubic may have no minimum that way.
    fn past_a_flatter_slope(&self, tried: Point) -> f64 {
        let (best, other) = (self.best, self.other);
        let Cubic {
            theta,
            scale,
            square,
        } = Cubic::through(best, tried);
        let gamma = scale * square.max(0.0).sqrt();
        let gamma = if tried.step > best.step {
            -gamma
        } else {
            gamma
        };
        let r = ((gamma - tried.slope) + theta) / ((gamma + (best.slope - tried.slope)) + gamma);
        let by_cubic = if r < 0.0 && gamma != 0.0 {
            tried.step - r * (tried.step - best.step)
        } else if tried.step > best.step {
            self.high
        } else {
            self.low
        };
        let by_secant = by_secant(best, tried);
        if !self.bracketed {
            return farther(tried.step, by_cubic, by_secant).clamp(self.low, self.high);
        }
        let next = if (by_cubic - tried.step).abs() < (by_secant - tried.step).abs() {
            by_cubic
        } else {
            by_secant
        };
        let limit = tried.step + 0.66 * (other.step - tried.step);
        if tried.step > best.step {
            next.min(limit)
        } else {
            next.max(limit)
        }
    }
}

/// Higher value: the minimum lies between.
fn below_a_higher_value(best: Point, tried: Point) -> f64 {
    let gap = tried.step - best.step;
    let by_cubic = Cubic::through(best, tried).lowest(best, tried);
    let by_quadratic = best.step + best.slope / ((best.f - tried.f) / gap + best.slope) / 2.0 * gap;
    if (by_cubic - best.step).abs() < (by_quadratic - best.step).abs() {
        by_cubic
    } else {
        by_cubic + (by_quadratic - by_cubic) / 2.0
    }
}

/// Lower value, slope of the other sign: the minimum lies between.
fn between_opposite_slopes(best: Point, tried: Point) -> f64 {
    let by_cubic = Cubic::through(best, tried).lowest(tried, best);
    farther(tried.step, by_cubic, by_secant(best, tried))
}

/// Where the line through two slopes is zero.
fn by_secant(best: Point, tried: Point) -> f64 {
    tried.step - tried.slope / (tried.slope - best.slope) * (tried.step - best.step)
}

/// The cubic through two points with their slopes, in dcstep's terms: theta, and gamma as
/// `scale` · √`square`, whose sign is the way in which the minimum is looked for.
struct Cubic {
    theta: f64,
    scale: f64,
    square: f64,
}

impl Cubic {
    fn through(a: Point, b: Point) -> Cubic {
        let theta = 3.0 * (a.f - b.f) / (b.step - a.step) + a.slope + b.slope;
        let scale = theta.abs().max(a.slope.abs()).max(b.slope.abs());
        Cubic {
            theta,
            scale,
            square: (theta / scale).powi(2) - (a.slope / scale) * (b.slope / scale),
        }
    }

    /// Its minimum where that lies between its two points.
    fn lowest(&self, from: Point, to: Point) -> f64 {
        let gamma = self.scale * self.square.sqrt();
        let gamma = if to.step < from.step { -gamma } else { gamma };
        let r = ((gamma - from.slope) + self.theta) / (((gamma - from.slope) + gamma) + to.slope);
        from.step + r * (to.step - from.step)
    }
}

/// Of two steps the one farther from `from`; the second of equal ones.
fn farther(from: f64, a: f64, b: f64) -> f64 {
    if (a - from).abs() > (b - from).abs() {
        a
    } else {
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rosenbrock_valley_is_followed_to_its_end() {
        let stop = Stop {
            gradient: 1e-8,
            decrease: 0.0,
            iterations: 200,
        };
        let minimum = minimize(vec![-1.2, 1.0], &stop, |x, g| {
            let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
            g[0] = -2.0 * a - 400.0 * x[0] * b;
            g[1] = 200.0 * b;
            Ok(a * a + 100.0 * b * b)
        })
        .unwrap();
        assert!(minimum.converged);
        // scipy.optimize.minimize(method="L-BFGS-B", options=dict(gtol=1e-8, ftol=0, maxls=50)).nit
        assert_eq!(minimum.iterations, 38); // SciPy 1.17.1
        assert!(
            minimum.x.iter().all(|x| (x - 1.0).abs() < 1e-7),
            "{:?}",
            minimum.x
        );
    }

    #[test]
    fn a_start_at_the_minimum_needs_no_iteration() {
        let stop = Stop {
            gradient: 1e-8,
            decrease: 0.0,
            iterations: 5,
        };
        let minimum = minimize(vec![0.0], &stop, |x, g| {
            g[0] = 2.0 * x[0];
            Ok(x[0] * x[0])
        })
        .unwrap();
        assert!(minimum.converged && minimum.iterations == 0);
    }

    #[test]
    fn running_out_of_iterations_is_said() {
        let stop = Stop {
            gradient: 1e-12,
            decrease: 0.0,
            iterations: 1,
        };
        let minimum = minimize(vec![3.0, 1.0], &stop, |x, g| {
            (g[0], g[1]) = (2.0 * x[0], 200.0 * x[1]);
            Ok(x[0] * x[0] + 100.0 * x[1] * x[1])
        })
        .unwrap();
        assert!(!minimum.converged && minimum.iterations == 1);
    }
}
