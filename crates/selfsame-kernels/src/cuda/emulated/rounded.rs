//! Weights rounded together.

use super::{Memory, rounded};
use crate::cuda::launch::{Element, Rounded};
use crate::testing::values;

#[test]
#[ignore = "needs g++"]
fn weights_are_rounded_each_to_its_place() {
    let lens = [1, 2, 301, 20_001];
    let weights: Vec<Vec<f32>> = (1..)
        .zip(lens)
        .map(|(seed, len)| values(len, seed, 2.0))
        .collect();
    let mut memory = Memory::default();
    let places: Vec<(u32, usize)> = weights
        .iter()
        .map(|weight| (memory.f32(weight), weight.len()))
        .collect();
    let sizes = Rounded::new(&places).unwrap();
    let table = memory.table(&sizes.table);
    let to = memory.unwritten(Element::Bf16, sizes.len);
    memory.run(&[sizes.launch(table, to).unwrap()]);
    let got = memory.read(Element::Bf16, to);
    for (weight, &start) in weights.iter().zip(&sizes.starts) {
        assert_eq!(
            &got[start..][..weight.len()],
            rounded(Element::Bf16, weight)
        );
    }
}
