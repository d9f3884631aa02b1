//! Max pooling and ReLU: comparisons and copies, with the bits of the passes on the CPU.

use candle_core::{Device, Tensor, Var};

use super::{Memory, rounded};
use crate::cuda::launch::{Element, MaxPool, relu, relu_grad};
use crate::testing::values;

/// Few values, so that some are equal, and a NaN and infinities among them.
pub(super) fn coarse(n: usize, seed: u64) -> Vec<f32> {
    let mut xs: Vec<f32> = values(n, seed, 3.0).iter().map(|x| x.round()).collect();
    for (i, x) in [(n / 2, f32::NAN), (n / 3, f32::INFINITY)] {
        xs[i] = x;
    }
    xs[..n / 4].fill(f32::NEG_INFINITY);
    xs
}

/// The same numbers, a NaN for a NaN.
pub(super) fn assert_same(got: &[f32], want: &Tensor, what: &str) {
    let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
    let [got, want] = [got, &want].map(|xs| xs.iter().map(|x| x.to_string()).collect::<Vec<_>>());
    assert_eq!(got, want, "{what}");
}

/// The result on the CPU, and the gradient there for a given one of the result.
pub(super) fn on_cpu(
    op: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
    xs: &[f32],
    shape: &[usize],
    element: Element,
) -> (Tensor, Vec<f32>, Tensor) {
    let x = Var::from_tensor(&Tensor::from_slice(xs, shape, &Device::Cpu).unwrap()).unwrap();
    let ys = op(&x).unwrap();
    let grad = rounded(element, &values(ys.elem_count(), 7, 1.0));
    let of_ys = Tensor::from_slice(&grad, ys.dims(), &Device::Cpu).unwrap();
    let grads = (&ys * of_ys).unwrap().sum_all().unwrap().backward();
    let dx = grads.unwrap().get(&x).unwrap().clone();
    (ys, grad, dx)
}

fn max_pool(element: Element, shape: [usize; 4], of: [usize; 3]) {
    let what = format!("{element:?} {shape:?} {of:?}");
    let [kernel, stride, padding] = of;
    let [b, c, h, w] = shape;
    let xs = coarse(b * c * h * w, 1);
    let op = |x: &Tensor| crate::max_pool2d(x, kernel, stride, padding);
    let (want, grad, d_x) = on_cpu(op, &xs, &shape, element);
    let [_, _, h_out, w_out] = want.dims() else {
        panic!("four dimensions")
    };
    let sizes = MaxPool::new(element, b * c, [h, w], [*h_out, *w_out], of).unwrap();
    let mut memory = Memory::default();
    let [m_xs, m_grad] = [&xs, &grad].map(|values| memory.elements(element, values));
    let ys = memory.unwritten(element, grad.len());
    let winners = memory.bytes(vec![0xff; grad.len()]);
    let dx = memory.unwritten(element, xs.len());
    memory.run(&[
        sizes.forward(m_xs, ys, winners),
        sizes.grad(winners, m_grad, dx),
    ]);
    assert_same(&memory.read(element, ys), &want, &what);
    let got = memory.read(element, dx);
    match element {
        Element::F32 => assert_same(&got, &d_x, &what),
        Element::Bf16 => {
            let d_x: Vec<f32> = d_x.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(got, rounded(element, &d_x), "{what}");
        }
    }
}

#[test]
#[ignore = "needs g++"]
fn max_pooling_and_its_gradient_have_the_bits_of_the_cpu() {
    for element in [Element::F32, Element::Bf16] {
        max_pool(element, [2, 3, 23, 19], [3, 2, 1]);
        max_pool(element, [1, 2, 8, 8], [2, 2, 0]);
        max_pool(element, [1, 1, 40, 17], [7, 1, 3]);
        max_pool(element, [2, 2, 9, 9], [1, 2, 0]);
        max_pool(element, [1, 1, 15, 31], [15, 4, 7]);
    }
}

#[test]
#[ignore = "needs g++"]
fn relu_and_its_gradient_have_the_bits_of_the_cpu() {
    for element in [Element::F32, Element::Bf16] {
        for len in [8, 1025, 1_100_003] {
            let xs = coarse(len, 1);
            let (want, grad, d_x) = on_cpu(crate::relu, &xs, &[len], element);
            let mut memory = Memory::default();
            let [m_xs, m_grad] = [&xs, &grad].map(|values| memory.elements(element, values));
            let [ys, dx] = [0; 2].map(|_| memory.unwritten(element, len));
            memory.run(&[
                relu(element, len, m_xs, ys).unwrap(),
                relu_grad(element, len, [ys, m_grad], dx).unwrap(),
            ]);
            assert_same(&memory.read(element, ys), &want, "relu");
            assert_same(&memory.read(element, dx), &d_x, "its gradient");
        }
    }
}
