//! A quadtree over points of the plane, built by sorting them along a Z-order curve.

use super::repulsion::Bodies;
use rayon::prelude::*;

/// Points of a tree at most: the number of one has 24 bits beside its place on the curve.
pub(super) const MOST_POINTS: usize = 1 << 24;
/// Points a leaf holds at most, unless they lie on one spot.
const LEAF: usize = 16;
/// Bits of a coordinate in the curve's code, hence levels of the tree.
const BITS: u32 = 20;

/// A node: the points of a square, and their box and mean.
struct Node {
    /// Place of the first point in the order of the curve.
    start: u32,
    /// One past the last.
    end: u32,
    /// The first child; children lie side by side. None: a leaf.
    children: Option<(u32, u32)>,
    mean: [f32; 2],
    low: [f32; 2],
    high: [f32; 2],
}

/// The tree.
pub(super) struct Quadtree<'a> {
    points: &'a [[f32; 2]],
    order: Vec<u32>,
    nodes: Vec<Node>,
    leaves: Vec<u32>,
}

impl<'a> Quadtree<'a> {
    pub(super) fn new(points: &'a [[f32; 2]]) -> Quadtree<'a> {
        let (low, high) = bounds(points.iter());
        let side = (high[0] - low[0])
            .max(high[1] - low[1])
            .max(f32::MIN_POSITIVE);
        let cells = ((1u32 << BITS) - 1) as f32;
        // Code above, number below: keys differ, so any sort gives the same order.
        let mut keys: Vec<u64> = points
            .par_iter()
            .enumerate()
            .map(|(i, point)| {
                let cell = [0, 1].map(|c| ((point[c] - low[c]) / side * cells) as u32);
                (spread(cell[0]) | spread(cell[1]) << 1) << 24 | i as u64
            })
            .collect();
        assert!(points.len() <= MOST_POINTS, "TsneConfig::check says so");
        keys.par_sort_unstable();
        let mut tree = Quadtree {
            points,
            order: keys.iter().map(|key| (key & 0xff_ffff) as u32).collect(),
            nodes: Vec::with_capacity(points.len() / 4 + 1),
            leaves: Vec::new(),
        };
        let codes: Vec<u64> = keys.iter().map(|key| key >> 24).collect();
        let root = tree.node(0, points.len());
        tree.nodes.push(root);
        // Breadth first, so that the children of a node lie side by side.
        let mut levels = vec![2 * BITS];
        let mut at = 0;
        while at < tree.nodes.len() {
            let (start, end) = (tree.nodes[at].start as usize, tree.nodes[at].end as usize);
            let level = levels[at];
            if end - start <= LEAF || level == 0 {
                tree.leaves.push(at as u32);
            } else {
                let first = tree.nodes.len() as u32;
                let mut from = start;
                while from < end {
                    let quarter = codes[from] >> (level - 2);
                    let to = from
                        + codes[from..end].partition_point(|code| code >> (level - 2) == quarter);
                    let child = tree.node(from, to);
                    tree.nodes.push(child);
                    levels.push(level - 2);
                    from = to;
                }
                tree.nodes[at].children = Some((first, tree.nodes.len() as u32));
            }
            at += 1;
        }
        tree
    }

    fn node(&self, start: usize, end: usize) -> Node {
        let members = &self.order[start..end];
        let points = || members.iter().map(|&i| &self.points[i as usize]);
        let (low, high) = bounds(points());
        let count = members.len() as f64;
        let mean = [0, 1].map(|c| {
            let sum: f64 = points().map(|point| f64::from(point[c])).sum();
            (sum / count) as f32
        });
        Node {
            start: start as u32,
            end: end as u32,
            children: None,
            mean,
            low,
            high,
        }
    }

    /// The nodes without children.
    pub(super) fn leaves(&self) -> &[u32] {
        &self.leaves
    }

    /// The points of a node.
    pub(super) fn members(&self, node: u32) -> &[u32] {
        let node = &self.nodes[node as usize];
        &self.order[node.start as usize..node.end as usize]
    }

    /// What the points of a leaf feel: far cells as one body, near leaves point by point.
    pub(super) fn bodies_felt_by(&self, leaf: u32, angle: f64, bodies: &mut Bodies) {
        bodies.clear();
        let own = &self.nodes[leaf as usize];
        let square = (angle * angle) as f32;
        let mut open = vec![0u32];
        while let Some(at) = open.pop() {
            let node = &self.nodes[at as usize];
            let outside = |c: usize| {
                (own.low[c] - node.mean[c])
                    .max(node.mean[c] - own.high[c])
                    .max(0.0)
            };
            let distance = outside(0) * outside(0) + outside(1) * outside(1);
            let width = (node.high[0] - node.low[0]).max(node.high[1] - node.low[1]);
            if width * width < square * distance {
                bodies.push(node.mean, (node.end - node.start) as f32);
            } else if let Some((first, last)) = node.children {
                open.extend(first..last);
            } else {
                for &i in self.members(at) {
                    bodies.push(self.points[i as usize], 1.0);
                }
            }
        }
    }
}

fn bounds<'a>(points: impl Iterator<Item = &'a [f32; 2]>) -> ([f32; 2], [f32; 2]) {
    points.fold(
        ([f32::INFINITY; 2], [f32::NEG_INFINITY; 2]),
        |(low, high), point| {
            (
                [0, 1].map(|c| low[c].min(point[c])),
                [0, 1].map(|c| high[c].max(point[c])),
            )
        },
    )
}

/// The bits of a coordinate with a gap after each.
fn spread(bits: u32) -> u64 {
    let mut x = u64::from(bits);
    x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    x = (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    x = (x | x << 2) & 0x3333_3333_3333_3333;
    (x | x << 1) & 0x5555_5555_5555_5555
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_in_one_leaf() {
        let points: Vec<[f32; 2]> = (0..500)
            .map(|i| [(i as f32 * 0.7).sin(), (i as f32 * 1.3).cos()])
            .chain([[0.25, 0.25]; 40]) // more than a leaf holds, on one spot
            .collect();
        let tree = Quadtree::new(&points);
        let leaves = tree.leaves().iter();
        let mut found: Vec<u32> = leaves
            .flat_map(|&leaf| tree.members(leaf).to_vec())
            .collect();
        found.sort_unstable();
        assert_eq!(found, (0..540).collect::<Vec<u32>>());
        for &leaf in tree.leaves() {
            let members = tree.members(leaf);
            let first = points[members[0] as usize];
            let one_spot = members.iter().all(|&i| points[i as usize] == first);
            assert!(members.len() <= LEAF || one_spot);
        }
    }
}
