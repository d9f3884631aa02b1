//! Batch norm, with and without what is added behind it and ReLU.

use candle_core::Tensor;

use super::{Memory, assert_close, dot, host, var};
use crate::composed;
use crate::cuda::launch::{BatchNorm, Element, Extras};
use crate::testing::values;

/// What is not a size.
#[derive(Clone, Copy, Debug)]
struct Case {
    extras: Extras,
    residual: bool,
    /// How far from zero the values lie, in standard deviations.
    mean: f32,
}

const EPS: f64 = 1e-5;

fn batch_norm(shape: &[usize], case: Case) {
    let what = format!("{shape:?} {case:?}");
    let len = shape.iter().product();
    let (batch, channels) = (shape[0], shape[1]);
    let xs: Vec<f32> = values(len, 1, 1.7).iter().map(|x| x + case.mean).collect();
    let [weight, bias] = [2, 3].map(|seed| values(channels, seed, 1.5));
    let (residual, grad) = (values(len, 4, 2.0), values(len, 5, 1.0));
    let given_mean = values(channels, 6, 0.5);
    let given_var: Vec<f32> = values(channels, 7, 1.0).iter().map(|x| 1.2 + x).collect();
    let [x, r] = [&xs, &residual].map(|values| var(values, shape));
    let [w, b, mean, variance] =
        [&weight, &bias, &given_mean, &given_var].map(|values| var(values, &[channels]));
    let (mut want, want_stats) = match case.extras.of_batch {
        true => {
            let (ys, mean, var) = composed::batch_norm_train(&x, &w, &b, EPS).unwrap();
            (ys, Some([mean, var]))
        }
        false => {
            let ys = composed::batch_norm_eval(&x, &mean, &variance, &w, &b, EPS);
            (ys.unwrap(), None)
        }
    };
    if case.residual {
        want = (want + r.as_tensor()).unwrap();
    }
    if case.extras.relu {
        want = composed::relu(&want).unwrap();
    }
    let grads = dot(&want, &grad).backward().unwrap();
    let grad_of = |of: &Tensor| host(grads.get(of).unwrap());

    let mut memory = Memory::default();
    let [m_xs, m_residual, m_grad] = [&xs, &residual, &grad].map(|values| memory.f32(values));
    let affine = memory.f32(&[weight, bias].concat());
    let sizes = BatchNorm::new(batch, channels, len / batch / channels).unwrap();
    let mut unwritten = |len| memory.unwritten(Element::F32, len);
    let (parts, stats) = (unwritten(sizes.parts_len()), unwritten(3 * channels));
    let (d_residual, d_affine) = (unwritten(len), unwritten(2 * channels));
    let [ys, dx] = [0; 2].map(|_| memory.unwritten(Element::F32, len));
    let mut launches = match case.extras.of_batch {
        true => sizes.stats(m_xs, parts, stats, EPS as f32).to_vec(),
        false => {
            let [mean, variance] = [&given_mean, &given_var].map(|values| memory.f32(values));
            vec![sizes.given(mean, variance, stats, EPS as f32)]
        }
    };
    let added = case.residual.then_some(m_residual);
    launches.push(sizes.apply(m_xs, added, [stats, affine], ys, case.extras));
    let read = [m_xs, m_grad, stats, affine];
    launches.extend(sizes.grads(
        read,
        case.residual.then_some(ys),
        parts,
        [d_affine, dx],
        case.residual.then_some(d_residual),
        case.extras,
    ));
    memory.run(&launches);
    let tolerance = 2e-6 * f64::from(1.0 + case.mean.abs());
    let got = |place| memory.read(Element::F32, place);
    if let Some([mean, var]) = want_stats {
        let stats = got(stats);
        assert_close(&stats[..channels], &host(&mean), 2e-6, &what);
        assert_close(&stats[2 * channels..], &host(&var), tolerance, &what);
    }
    assert_close(&got(ys), &host(&want), tolerance, &what);
    let d_affine = got(d_affine);
    assert_close(&d_affine[..channels], &grad_of(&w), 5.0 * tolerance, &what);
    assert_close(&d_affine[channels..], &grad_of(&b), 5e-6, &what);
    assert_close(&got(dx), &grad_of(&x), 5.0 * tolerance, &what);
    if case.residual {
        assert_close(&got(d_residual), &grad_of(&r), 0.0, &what);
    }
}

#[test]
#[ignore = "needs g++"]
fn batch_norm_and_its_gradients_follow_the_composed_ones() {
    for shape in [&[5, 3, 7, 5][..], &[2, 9, 1, 1], &[33, 17], &[3, 2, 48, 40]] {
        for of_batch in [true, false] {
            for (relu, residual) in [(false, false), (true, false), (true, true), (false, true)] {
                // Two values of a channel are ±1, whatever they are: there is no gradient.
                if shape[0] == 2 && of_batch {
                    continue;
                }
                let extras = Extras { relu, of_batch };
                let case = Case {
                    extras,
                    residual,
                    mean: 0.0,
                };
                batch_norm(shape, case);
            }
        }
    }
}

#[test]
#[ignore = "needs g++"]
fn a_mean_far_from_zero_does_not_cost_the_variance() {
    let extras = Extras {
        relu: false,
        of_batch: true,
    };
    let case = Case {
        extras,
        residual: false,
        mean: 300.0,
    };
    batch_norm(&[3, 2, 48, 40], case);
}

#[test]
#[ignore = "needs g++"]
fn a_nan_takes_its_channel_and_no_other_and_passes_the_relu() {
    let (batch, channels, plane) = (3, 2, 1000);
    let mut xs = values(batch * channels * plane, 1, 2.0);
    xs[channels * plane + 5] = f32::NAN;
    let mut memory = Memory::default();
    let m_xs = memory.f32(&xs);
    let affine = memory.f32(&[1.0, 1.0, 0.5, 0.5]);
    let sizes = BatchNorm::new(batch, channels, plane).unwrap();
    let mut unwritten = |len| memory.unwritten(Element::F32, len);
    let (parts, stats) = (unwritten(sizes.parts_len()), unwritten(3 * channels));
    let ys = memory.f32(&vec![0.0; xs.len()]);
    let extras = Extras {
        relu: true,
        of_batch: true,
    };
    let mut launches = sizes.stats(m_xs, parts, stats, EPS as f32).to_vec();
    launches.push(sizes.apply(m_xs, None, [stats, affine], ys, extras));
    memory.run(&launches);
    for (i, y) in memory.read(Element::F32, ys).iter().enumerate() {
        assert_eq!(y.is_nan(), i / plane % channels == 0, "element {i}");
    }
}
