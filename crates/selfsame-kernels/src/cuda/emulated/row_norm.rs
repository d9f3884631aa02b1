//! Batch norm of rows, with what is added, and ReLU.

use candle_core::{DType, Tensor};

use super::{Memory, assert_close, dot, host, rounded, var};
use crate::composed;
use crate::cuda::launch::{Element, NormPlaces, RowNorm, RowsAdded};
use crate::testing::values;

const EPS: f64 = 1e-5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Adds {
    Nothing,
    Rows,
    Normalised,
}

/// `mean`: how far from zero the values lie, in standard deviations.
fn row_norm(element: Element, [rows, channels]: [usize; 2], adds: Adds, mean: f32) {
    let what = format!("{element:?} {rows} x {channels}, {adds:?}, mean {mean}");
    let len = rows * channels;
    let of = |seed, mean: f32| {
        let values = values(len, seed, 1.7);
        rounded(
            element,
            &values.iter().map(|x| x + mean).collect::<Vec<_>>(),
        )
    };
    let (xs, added, grad) = (
        of(1, mean),
        of(2, mean),
        rounded(element, &values(len, 5, 1.0)),
    );
    let affine = |seed| values(channels, seed, 1.5);
    let (of_xs, of_added) = ([3, 4].map(affine), [6, 7].map(affine));
    let [x, a] = [&xs, &added].map(|values| var(values, &[rows, channels]));
    let vars = |of: &[Vec<f32>; 2]| of.clone().map(|values| var(&values, &[channels]));
    let ([w, b], [aw, ab]) = (vars(&of_xs), vars(&of_added));
    let norm =
        |x: &Tensor, w: &Tensor, b: &Tensor| composed::batch_norm_train(x, w, b, EPS).unwrap();
    let (ys, want_mean, want_var) = norm(&x, &w, &b);
    let sum = match adds {
        Adds::Nothing => ys,
        Adds::Rows => (ys + a.as_tensor()).unwrap(),
        Adds::Normalised => (ys + norm(&a, &aw, &ab).0).unwrap(),
    };
    let want = composed::relu(&sum).unwrap();
    // The ReLU is taken at the rounded results where these are read again.
    let grads = dot(&want, &grad).backward().unwrap();
    let grad_of = |of: &Tensor| host(grads.get(of).unwrap());

    let sizes = RowNorm::new(element, rows, channels).unwrap();
    let mut memory = Memory::default();
    let m_xs = memory.elements(element, &xs);
    let m_added = memory.elements(element, &added);
    let m_grad = memory.elements(element, &grad);
    let mut places = |[weight, bias]: &[Vec<f32>; 2]| NormPlaces {
        stats: memory.unwritten(Element::F32, 3 * channels),
        weight: memory.f32(weight),
        bias: memory.f32(bias),
    };
    let (own, others) = (places(&of_xs), places(&of_added));
    let parts = memory.unwritten(Element::F32, sizes.parts_len());
    let sums = memory.unwritten(Element::F32, 3 * channels);
    let [ys, dx] = [0; 2].map(|_| memory.unwritten(element, len));
    let adding = match adds {
        Adds::Nothing => RowsAdded::Nothing,
        Adds::Rows => RowsAdded::Rows(m_added),
        Adds::Normalised => RowsAdded::Normalised(m_added, others),
    };
    let mut launches = sizes.stats(m_xs, parts, own.stats, EPS as f32).to_vec();
    if adds == Adds::Normalised {
        launches.extend(sizes.stats(m_added, parts, others.stats, EPS as f32));
    }
    launches.push(sizes.relu(m_xs, own, adding, ys));
    let is_masked = adds != Adds::Nothing;
    let results = is_masked.then_some(ys);
    launches.extend(sizes.grad_sums(m_xs, own, (results, m_grad), adding, [parts, sums]));
    memory.run(&launches);
    let masked = memory.read(element, m_grad);
    // In place of the gradient, which nobody needs any more where nothing was added.
    let (dx, d_added) = match adds {
        Adds::Nothing => (m_grad, m_grad),
        Adds::Rows => (dx, dx),
        Adds::Normalised => (dx, m_grad),
    };
    memory.run(&[sizes.grad(m_xs, own, (m_grad, is_masked), sums, adding, [dx, d_added])]);

    let exact = 3e-6 * f64::from(1.0 + mean.abs());
    let tolerance = match element {
        Element::F32 => 5.0 * exact,
        Element::Bf16 => 1.0 / 128.0,
    };
    let f32s = |place| memory.read(Element::F32, place);
    let stats = f32s(own.stats);
    // The means lie a tenth as far from zero as the values.
    assert_close(&stats[..channels], &host(&want_mean), 10.0 * exact, &what);
    assert_close(&stats[2 * channels..], &host(&want_var), 5.0 * exact, &what);
    assert_close(&memory.read(element, ys), &host(&want), tolerance, &what);
    let sums = f32s(sums);
    assert_close(&sums[..channels], &grad_of(&b), exact, &what);
    assert_close(
        &sums[channels..2 * channels],
        &grad_of(&w),
        5.0 * exact,
        &what,
    );
    assert_close(&memory.read(element, dx), &grad_of(&x), tolerance, &what);
    match adds {
        Adds::Nothing => {}
        Adds::Rows => assert_close(&masked, &grad_of(&a), 0.0, &what),
        Adds::Normalised => {
            assert_close(&sums[2 * channels..], &grad_of(&aw), 5.0 * exact, &what);
            assert_close(
                &memory.read(element, d_added),
                &grad_of(&a),
                tolerance,
                &what,
            );
        }
    }
}

#[test]
#[ignore = "needs g++"]
fn batch_norm_of_rows_and_its_gradients_follow_the_composed_ones() {
    for element in [Element::F32, Element::Bf16] {
        for adds in [Adds::Nothing, Adds::Rows, Adds::Normalised] {
            for sizes in [[33, 8], [301, 24], [2_100, 64], [57, 264]] {
                row_norm(element, sizes, adds, 0.0);
            }
        }
    }
    // Far from zero nothing cancels; bf16 cannot tell such values apart.
    row_norm(Element::F32, [301, 24], Adds::Normalised, 300.0);
}

#[test]
#[ignore = "needs g++"]
fn given_statistics_are_taken_as_they_are() {
    let (rows, channels) = (40, 24);
    let xs = values(rows * channels, 1, 2.0);
    let of = |seed| values(channels, seed, 1.0);
    let (mean, weight, bias) = (of(2), of(3), of(4));
    let variance: Vec<f32> = of(5).iter().map(|x| 1.5 + x).collect();
    let [m, v, w, b] = [&mean, &variance, &weight, &bias].map(|values| var(values, &[channels]));
    let x = var(&xs, &[rows, channels]);
    let ys = composed::batch_norm_eval(&x, &m, &v, &w, &b, EPS).unwrap();
    let sizes = RowNorm::new(Element::F32, rows, channels).unwrap();
    let mut memory = Memory::default();
    let m_xs = memory.f32(&xs);
    let running = [&mean, &variance].map(|values| memory.f32(values));
    let [stats, ys_at] = [3 * channels, xs.len()].map(|len| memory.unwritten(Element::F32, len));
    let norm = NormPlaces {
        stats,
        weight: memory.f32(&weight),
        bias: memory.f32(&bias),
    };
    memory.run(&[
        sizes.given(running, stats, EPS as f32),
        sizes.relu(m_xs, norm, RowsAdded::Nothing, ys_at),
    ]);
    let want = host(&composed::relu(&ys).unwrap());
    assert_close(&memory.read(Element::F32, ys_at), &want, 1e-6, "given");
}

#[test]
#[ignore = "needs g++"]
fn what_is_not_a_number_is_not_lost() {
    let mut xs = values(64 * 8, 1, 1.0);
    xs[3 * 8 + 2] = f32::NAN;
    let sizes = RowNorm::new(Element::F32, 64, 8).unwrap();
    let mut memory = Memory::default();
    let m_xs = memory.f32(&xs);
    let [stats, parts, ys] =
        [24, sizes.parts_len(), 64 * 8].map(|len| memory.unwritten(Element::F32, len));
    let norm = NormPlaces {
        stats,
        weight: memory.f32(&[1.0; 8]),
        bias: memory.f32(&[0.0; 8]),
    };
    let mut launches = sizes.stats(m_xs, parts, stats, EPS as f32).to_vec();
    launches.push(sizes.relu(m_xs, norm, RowsAdded::Nothing, ys));
    memory.run(&launches);
    let ys = Tensor::from_vec(
        memory.read(Element::F32, ys),
        (64, 8),
        &candle_core::Device::Cpu,
    );
    let ys = ys.unwrap().to_dtype(DType::F64).unwrap();
    let column = |c| {
        ys.narrow(1, c, 1)
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f64>()
            .unwrap()
    };
    assert!(column(2).is_nan() && (0..8).filter(|&c| c != 2).all(|c| column(c) > 0.0));
}
