//! Rows brought to a length.

use super::{Memory, assert_close, dot, host, var};
use crate::composed;
use crate::cuda::launch::{Element, Normalize};
use crate::testing::values;

fn normalize(element: Element, rows: usize, width: usize, with_lengths: bool) {
    let what = format!("{element:?} {rows} x {width}, lengths {with_lengths}");
    let mut xs = values(rows * width, 1, 2.0);
    if rows > 2 {
        // A row that only eps keeps from a division by zero.
        xs[width..2 * width].fill(0.0);
    }
    let grad = values(rows * width, 2, 1.0);
    let lengths = match with_lengths {
        true => values(rows, 3, 1.5),
        false => vec![1.0; rows],
    };
    let (x, l) = (var(&xs, &[rows, width]), var(&lengths, &[rows, 1]));
    let direction = composed::l2_normalize_last_dim(&x, 1e-3).unwrap();
    let want = direction.broadcast_mul(&l).unwrap();
    let grads = dot(&want, &grad).backward().unwrap();

    let mut memory = Memory::default();
    let [m_xs, m_grad] = [&xs, &grad].map(|values| memory.f32(values));
    let m_lengths = with_lengths.then(|| memory.f32(&lengths));
    let ys = memory.unwritten(element, rows * width);
    let dx = memory.unwritten(Element::F32, rows * width);
    let sizes = Normalize::new(rows, width, 1e-3).unwrap();
    memory.run(&[
        sizes.forward(element, m_xs, m_lengths, ys),
        sizes.grad(m_xs, m_lengths, m_grad, dx),
    ]);
    let tolerance = match element {
        Element::F32 => 2e-6,
        Element::Bf16 => 1.0 / 256.0,
    };
    assert_close(&memory.read(element, ys), &host(&want), tolerance, &what);
    let want = host(grads.get(&x).unwrap());
    assert_close(&memory.read(Element::F32, dx), &want, 4e-6, &what);
}

#[test]
#[ignore = "needs g++"]
fn rows_of_a_length_and_their_gradient_follow_the_composed_ones() {
    for element in [Element::F32, Element::Bf16] {
        for (rows, width) in [(1, 2), (5, 37), (9, 256), (130, 64)] {
            normalize(element, rows, width, rows % 2 == 1);
        }
    }
}
