//! Layer norm, bias and GELU.

use super::{Memory, assert_close, dot, host, rounded, var};
use crate::composed;
use crate::cuda::launch::{BiasGelu, Element, LayerNorm, Norm, sum_parts};
use crate::testing::values;

/// One element in ten thousand, or half of bf16's last bit.
fn tolerance(element: Element) -> f64 {
    match element {
        Element::F32 => 2e-6,
        Element::Bf16 => 1.0 / 256.0,
    }
}

fn layer_norm(norm: Norm, rows: usize, width: usize) {
    let what = format!("{norm:?} {rows} x {width}");
    let (from, to) = match norm {
        Norm::F32 => (Element::F32, Element::F32),
        Norm::Bf16 => (Element::Bf16, Element::Bf16),
        Norm::F32ToBf16 => (Element::F32, Element::Bf16),
    };
    let xs = rounded(from, &values(rows * width, 1, 2.0));
    let (weight, bias) = (values(width, 2, 1.5), values(width, 3, 1.0));
    let grad = rounded(to, &values(rows * width, 4, 1.0));
    let [x, w, b] = [
        var(&xs, &[rows, width]),
        var(&weight, &[width]),
        var(&bias, &[width]),
    ];
    let want = composed::layer_norm(&x, &w, &b, 1e-5).unwrap();
    let grads = dot(&want, &grad).backward().unwrap();

    let mut memory = Memory::default();
    let [m_xs, m_grad] = [memory.elements(from, &xs), memory.elements(to, &grad)];
    let [m_weight, m_bias] = [memory.f32(&weight), memory.f32(&bias)];
    let ys = memory.unwritten(to, rows * width);
    let stats = memory.unwritten(Element::F32, 2 * rows);
    let dx = memory.unwritten(from, rows * width);
    let sizes = LayerNorm::new(norm, rows, width).unwrap();
    let num_parts = sizes.parts().num_parts;
    let parts = memory.unwritten(Element::F32, num_parts as usize * 2 * width);
    let sums = memory.unwritten(Element::F32, 2 * width);
    memory.run(&[
        sizes.forward([m_xs, m_weight, m_bias], [ys, stats], 1e-5),
        sizes.grad([m_xs, stats, m_weight, m_grad], dx),
        sizes.weights_grad([m_xs, stats, m_grad], parts),
        sum_parts(parts, sums, num_parts, 2 * width).unwrap(),
    ]);
    assert_close(&memory.read(to, ys), &host(&want), tolerance(to), &what);
    if width > 1 {
        let want = host(grads.get(&x).unwrap());
        assert_close(&memory.read(from, dx), &want, 2.0 * tolerance(from), &what);
    }
    let mut want = host(grads.get(&w).unwrap());
    want.extend(host(grads.get(&b).unwrap()));
    assert_close(&memory.read(Element::F32, sums), &want, 5e-6, &what);
}

#[test]
#[ignore = "needs g++"]
fn layer_norm_and_its_gradients_follow_the_composed_ones() {
    for norm in [Norm::F32, Norm::Bf16, Norm::F32ToBf16] {
        for (rows, width) in [(1, 1), (3, 37), (65, 192), (394, 384), (10, 1025)] {
            layer_norm(norm, rows, width);
        }
    }
}

fn bias_gelu(element: Element, rows: usize, width: usize, with_bias: bool) {
    let what = format!("{element:?} {rows} x {width}, bias {with_bias}");
    let xs = rounded(element, &values(rows * width, 1, 5.0));
    let grad = rounded(element, &values(rows * width, 3, 1.0));
    let bias = match with_bias {
        true => values(width, 2, 1.0),
        false => vec![0.0; width],
    };
    let (x, b) = (var(&xs, &[rows, width]), var(&bias, &[width]));
    let want = composed::gelu(&x.broadcast_add(&b).unwrap()).unwrap();
    let grads = dot(&want, &grad).backward().unwrap();

    let mut memory = Memory::default();
    let [m_xs, m_grad] = [&xs, &grad].map(|values| memory.elements(element, values));
    let m_bias = memory.f32(&bias);
    let [ys, dx, sum] = [0; 3].map(|_| memory.unwritten(element, rows * width));
    let sizes = BiasGelu::new(element, rows, width).unwrap();
    let num_parts = sizes.parts().num_parts;
    let [parts, of_grad] =
        [0; 2].map(|_| memory.unwritten(Element::F32, num_parts as usize * width));
    let [d_bias, grad_sums] = [0; 2].map(|_| memory.unwritten(Element::F32, width));
    let optional = with_bias.then_some(m_bias);
    memory.run(&[
        sizes.forward(m_xs, optional, ys),
        sizes.add_bias(m_xs, m_bias, sum),
        sizes.grad(m_xs, optional, m_grad, dx, Some(parts)),
        sum_parts(parts, d_bias, num_parts, width).unwrap(),
        sizes.column_sums(m_grad, of_grad),
        sum_parts(of_grad, grad_sums, num_parts, width).unwrap(),
    ]);
    let tolerance = tolerance(element);
    assert_close(&memory.read(element, ys), &host(&want), tolerance, &what);
    let added = host(&x.broadcast_add(&b).unwrap());
    assert_close(&memory.read(element, sum), &added, tolerance, &what);
    let d_xs = host(grads.get(&x).unwrap());
    assert_close(&memory.read(element, dx), &d_xs, tolerance, &what);
    let d_b = host(grads.get(&b).unwrap());
    assert_close(&memory.read(Element::F32, d_bias), &d_b, 5e-6, &what);
    let sums = host(&var(&grad, &[rows, width]).sum(0).unwrap());
    assert_close(&memory.read(Element::F32, grad_sums), &sums, 5e-6, &what);
}

#[test]
#[ignore = "needs g++"]
fn bias_gelu_and_sums_of_columns_follow_the_composed_ones() {
    for element in [Element::F32, Element::Bf16] {
        for (rows, width) in [(1, 1), (17, 37), (65, 129), (394, 768)] {
            bias_gelu(element, rows, width, true);
        }
        bias_gelu(element, 33, 130, false);
    }
}
