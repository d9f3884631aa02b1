//! Softmax and the DINO loss.

use candle_core::Tensor;

use super::{Memory, assert_close, dot, host, rounded, var};
use crate::composed;
use crate::cuda::launch::{CrossEntropy, Element, Softmax, scaled};
use crate::testing::values;

fn softmax(element: Element, rows: usize, width: usize, is_log: bool) {
    let what = format!("{element:?} {rows} x {width}, logarithm: {is_log}");
    let tolerance = match element {
        Element::F32 => 5e-6,
        Element::Bf16 => 1.0 / 128.0,
    };
    let (xs, grad) = (values(rows * width, 1, 8.0), values(rows * width, 2, 1.0));
    let [xs, grad] = [xs, grad].map(|values| rounded(element, &values));
    let center = values(width, 3, 1.0);
    let x = var(&xs, &[rows, width]);
    let f = match is_log {
        true => composed::log_softmax_last_dim,
        false => composed::softmax_last_dim,
    };
    let want = f(&x).unwrap();
    let grads = dot(&want, &grad).backward().unwrap();
    let centred = x.broadcast_sub(&var(&center, &[width])).unwrap();
    let want_centred = f(&(centred * 2.5).unwrap()).unwrap();

    let mut memory = Memory::default();
    let [m_xs, m_grad] = [&xs, &grad].map(|values| memory.elements(element, values));
    let m_center = memory.f32(&center);
    let [ys, centred, dx] = [0; 3].map(|_| memory.unwritten(element, rows * width));
    let sizes = Softmax::new(element, rows, width, is_log).unwrap();
    memory.run(&[
        sizes.forward(m_xs, None, ys, 1.0),
        sizes.forward(m_xs, Some(m_center), centred, 2.5),
        sizes.grad(ys, m_grad, dx),
    ]);
    assert_close(&memory.read(element, ys), &host(&want), tolerance, &what);
    assert_close(
        &memory.read(element, centred),
        &host(&want_centred),
        tolerance,
        &what,
    );
    let want = host(grads.get(&x).unwrap());
    // The logarithm of a rounded probability loses a few more of bf16's eight bits.
    let tolerance = tolerance * if is_log { 4.0 } else { 2.0 };
    assert_close(&memory.read(element, dx), &want, tolerance, &what);
}

#[test]
#[ignore = "needs g++"]
fn softmax_its_logarithm_and_gradients_follow_the_composed_ones() {
    for element in [Element::F32, Element::Bf16] {
        for is_log in [false, true] {
            for (rows, width) in [(1, 1), (5, 37), (4, 197), (3, 2048), (2, 65_536)] {
                softmax(element, rows, width, is_log);
            }
        }
    }
}

#[test]
#[ignore = "needs g++"]
fn softmax_gives_nothing_to_minus_infinity_wherever_it_stands() {
    let mut row = values(150, 7, 1.0);
    row[0] = f32::NEG_INFINITY;
    row[149] = f32::NEG_INFINITY;
    let want = composed::softmax_last_dim(&var(&row, &[1, 150])).unwrap();
    let mut memory = Memory::default();
    let (xs, ys) = (memory.f32(&row), memory.unwritten(Element::F32, 150));
    let sizes = Softmax::new(Element::F32, 1, 150, false).unwrap();
    memory.run(&[sizes.forward(xs, None, ys, 1.0)]);
    assert_close(&memory.read(Element::F32, ys), &host(&want), 5e-6, "masked");
}

fn cross_entropy(element: Element, width: usize, batch: usize, first_row: usize, rows: usize) {
    let what = format!("{element:?} K {width}, rows {first_row} and {rows} on");
    let num_crops = 4;
    let logits = rounded(element, &values(rows * width, 1, 3.0));
    let teacher = composed::softmax_last_dim(&var(
        &values(2 * batch * width, 2, 9.0),
        &[2 * batch, width],
    ));
    let teacher: Vec<f32> = host(&teacher.unwrap()).iter().map(|x| *x as f32).collect();
    let student = var(&logits, &[rows, width]);
    let probs = var(&teacher, &[2 * batch, width]);
    let want =
        composed::soft_cross_entropy_rows(&student, &probs, num_crops, first_row, 0.1).unwrap();
    let grads = (&want * 0.25).unwrap().backward().unwrap();

    let sizes = CrossEntropy {
        element,
        rows,
        width,
        batch,
        num_crops,
        first_row,
        student_temp: 0.1,
    };
    let mut memory = Memory::default();
    let m_student = memory.elements(element, &logits);
    let [m_teacher, quarter] = [memory.f32(&teacher), memory.f32(&[0.25])];
    let [grad, grad_scaled] = [0; 2].map(|_| memory.unwritten(element, rows * width));
    let [losses, again] = [0; 2].map(|_| memory.unwritten(Element::F32, rows));
    let loss = memory.unwritten(Element::F32, 1);
    memory.run(&[
        sizes
            .forward([m_student, m_teacher], Some(grad), losses)
            .unwrap(),
        sizes.forward([m_student, m_teacher], None, again).unwrap(),
        sizes.total(losses, loss).unwrap(),
        scaled(element, grad, quarter, grad_scaled, rows * width).unwrap(),
    ]);
    let want: &Tensor = &want;
    assert_close(&memory.read(Element::F32, loss), &host(want), 5e-6, &what);
    assert_eq!(
        memory.buffers[losses as usize],
        memory.buffers[again as usize]
    );
    let tolerance = match element {
        Element::F32 => 2e-5,
        Element::Bf16 => 1.0 / 200.0,
    };
    let want = host(grads.get(&student).unwrap());
    assert_close(&memory.read(element, grad_scaled), &want, tolerance, &what);
}

#[test]
#[ignore = "needs g++"]
fn the_loss_and_its_gradient_follow_the_composed_ones() {
    for element in [Element::F32, Element::Bf16] {
        // All rows of four crops of two images.
        cross_entropy(element, 37, 2, 0, 8);
        cross_entropy(element, 2048, 2, 0, 8);
        // Rows of two views, some of each.
        cross_entropy(element, 2048, 3, 2, 5);
        cross_entropy(element, 65_536, 1, 0, 4);
    }
}
