//! What pushes points apart: every pair exactly, over lanes that the compiler turns into vectors.

use super::quadtree::Quadtree;
use pulp::NullaryFnOnce;
use rayon::prelude::*;

/// Values handled side by side. The sums of each lane are added in a fixed order at the end, so
/// that the bits depend neither on threads nor on the width of the machine's vectors.
const LANES: usize = 16;
/// A place so far away that nothing there is felt; fills the last lanes.
const FAR: f32 = 1e15;
/// Points per task.
const TASK: usize = 64;

/// The push on a point, and its share of the normalisation Z.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Push {
    /// Σ w²·(difference), w = 1 / (1 + distance²).
    pub(super) force: [f64; 2],
    /// Σ w over the other points.
    pub(super) z: f64,
}

/// Bodies that repel, in columns: places and how many points each stands for.
#[derive(Default)]
pub(super) struct Bodies {
    x: Vec<f32>,
    y: Vec<f32>,
    mass: Vec<f32>,
}

impl Bodies {
    pub(super) fn clear(&mut self) {
        self.x.clear();
        self.y.clear();
        self.mass.clear();
    }

    pub(super) fn push(&mut self, [x, y]: [f32; 2], mass: f32) {
        self.x.push(x);
        self.y.push(y);
        self.mass.push(mass);
    }

    /// Fills the last lanes.
    pub(super) fn pad(&mut self) {
        while !self.x.len().is_multiple_of(LANES) {
            self.push([FAR, FAR], 0.0);
        }
    }

    /// The push of all bodies on a point that is one of them.
    #[inline(always)]
    pub(super) fn on(&self, [px, py]: [f32; 2]) -> Push {
        let (mut fx, mut fy, mut z) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
        let columns = self.x.as_chunks::<LANES>().0.iter();
        let columns = columns.zip(self.y.as_chunks::<LANES>().0);
        for ((xs, ys), ms) in columns.zip(self.mass.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                let (dx, dy) = (px - xs[lane], py - ys[lane]);
                let w = 1.0 / (1.0 + (dx * dx + dy * dy));
                let mw = ms[lane] * w;
                z[lane] += mw;
                let force = mw * w;
                fx[lane] += force * dx;
                fy[lane] += force * dy;
            }
        }
        let sum = |lanes: [f32; LANES]| lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
        Push {
            force: [sum(fx), sum(fy)],
            z: sum(z) - 1.0, // itself, at distance 0
        }
    }
}

/// The push of bodies on points that are among them, written to `pushes`.
struct PushAll<'a> {
    bodies: &'a Bodies,
    points: &'a [[f32; 2]],
    pushes: &'a mut [Push],
}

impl NullaryFnOnce for PushAll<'_> {
    type Output = ();

    // Inlined into a function that is compiled for wide vectors, with the loops inside.
    #[inline(always)]
    fn call(self) {
        for (push, &point) in self.pushes.iter_mut().zip(self.points) {
            *push = self.bodies.on(point);
        }
    }
}

impl PushAll<'_> {
    /// On AVX2 where the machine has it, which changes the time and not the bits.
    fn run(self) {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = pulp::x86::V3::try_new() {
            avx2.vectorize(self);
            return;
        }
        self.call();
    }
}

/// The push on every point by every other.
pub(super) fn exact(points: &[[f32; 2]]) -> Vec<Push> {
    let mut bodies = Bodies::default();
    points.iter().for_each(|&point| bodies.push(point, 1.0));
    bodies.pad();
    let mut pushes = vec![Push::default(); points.len()];
    let tasks = pushes.par_chunks_mut(TASK).zip(points.par_chunks(TASK));
    tasks.for_each(|(pushes, points)| {
        let bodies = &bodies;
        PushAll {
            bodies,
            points,
            pushes,
        }
        .run();
    });
    pushes
}

/// The push on every point, far cells taken as one body each (Barnes and Hut 1986; van der Maaten
/// 2014). All points of a leaf share one walk through the tree, with the criterion at the point of
/// the leaf's box that is nearest to the cell.
pub(super) fn barnes_hut(points: &[[f32; 2]], angle: f64) -> Vec<Push> {
    let tree = Quadtree::new(points);
    let of_leaves: Vec<(u32, Push)> = tree
        .leaves()
        .par_iter()
        .map_init(Bodies::default, |bodies, &leaf| {
            tree.bodies_felt_by(leaf, angle, bodies);
            bodies.pad();
            let members = tree.members(leaf);
            let of_leaf: Vec<[f32; 2]> = members.iter().map(|&i| points[i as usize]).collect();
            let mut pushes = vec![Push::default(); members.len()];
            PushAll {
                bodies,
                points: &of_leaf,
                pushes: &mut pushes,
            }
            .run();
            members.iter().copied().zip(pushes).collect::<Vec<_>>()
        })
        .flatten_iter()
        .collect();
    let mut pushes = vec![Push::default(); points.len()];
    for (i, push) in of_leaves {
        pushes[i as usize] = push;
    }
    pushes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spiral(n: usize) -> Vec<[f32; 2]> {
        let place = |i: usize| {
            let (turn, radius) = (i as f64 * 2.399_963, (i as f64).sqrt());
            [(radius * turn.cos()) as f32, (radius * turn.sin()) as f32]
        };
        (0..n).map(place).collect()
    }

    fn by_definition(points: &[[f32; 2]], i: usize) -> Push {
        let mut push = Push::default();
        for (j, other) in points.iter().enumerate() {
            if i == j {
                continue;
            }
            let d = [0, 1].map(|c| f64::from(points[i][c]) - f64::from(other[c]));
            let w = 1.0 / (1.0 + d[0] * d[0] + d[1] * d[1]);
            push.z += w;
            (0..2).for_each(|c| push.force[c] += w * w * d[c]);
        }
        push
    }

    #[test]
    fn exact_pushes_follow_their_formula() {
        let points = spiral(333);
        for (i, push) in exact(&points).into_iter().enumerate() {
            let expected = by_definition(&points, i);
            assert!((push.z / expected.z - 1.0).abs() < 1e-5);
            for c in 0..2 {
                assert!((push.force[c] - expected.force[c]).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn far_cells_as_one_body_change_little() {
        let points = spiral(3000);
        let (all, cells) = (exact(&points), barnes_hut(&points, 0.5));
        let size = |f: [f64; 2]| (f[0] * f[0] + f[1] * f[1]).sqrt();
        let gap = |a: &Push, b: &Push| size([0, 1].map(|c| a.force[c] - b.force[c]));
        let error: f64 = all.iter().zip(&cells).map(|(a, b)| gap(a, b)).sum();
        let whole: f64 = all.iter().map(|push| size(push.force)).sum();
        assert!(error > 0.0 && error < 0.03 * whole, "{error} of {whole}");
        let z = |pushes: &[Push]| pushes.iter().map(|push| push.z).sum::<f64>();
        assert!((z(&cells) / z(&all) - 1.0).abs() < 0.02);
    }

    #[test]
    fn points_on_one_spot_do_not_push() {
        for push in barnes_hut(&[[2.0, 3.0]; 100], 0.5) {
            assert_eq!(
                push,
                Push {
                    force: [0.0; 2],
                    z: 99.0
                }
            );
        }
    }
}
