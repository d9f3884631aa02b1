//! What ResNets are made of.

use candle_core::{DType, Result, Tensor};
use selfsame_kernels::{
    self as kernels, AfterNorm, ConvBlock, ConvNorm, MaxPool, Precision, Shortcut,
};

use super::{TYPES, apart, compare, flat, gpu, run, values};

#[test]
#[ignore = "needs cuda"]
fn convolutions_are_the_cpus_in_both_precisions() {
    // Sides, channels, kernel, stride, padding; images with few windows and with many.
    for (side, channels, [kernel, stride, padding]) in [
        (7, [9, 12], [1, 1, 0]),
        (16, [9, 12], [1, 1, 0]),
        (9, [5, 8], [1, 2, 0]),
        (7, [9, 6], [3, 1, 1]),
        (32, [4, 5], [3, 2, 1]),
        (23, [3, 8], [7, 2, 3]),
    ] {
        let [from, to] = channels;
        let inputs = [
            values(&[3, from, side, side], 1, 1.0),
            values(&[to, from, kernel, kernel], 2, 0.5),
        ];
        let op =
            |x: &[Tensor], precision| kernels::conv2d(&x[0], &x[1], stride, padding, precision);
        let name = format!("conv2d {side} {kernel}/{stride}/{padding}");
        let exact = |x: &[Tensor]| op(x, Precision::F32);
        compare(&name, &exact, &inputs, 0, DType::F32);
        let want = run(&exact, &inputs);
        let on_gpu = inputs.map(|x| x.to_device(&gpu()).unwrap());
        let got = run(&|x| op(x, Precision::Bf16), &on_gpu);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got.dtype(), DType::F32);
            let d = apart(got, want);
            assert!(d < 2e-2, "{name} in bf16, result {i}: {d:e} apart");
        }
    }
}

#[test]
#[ignore = "needs cuda"]
fn batch_norm_is_the_cpus_with_what_follows_it() {
    for shape in [&[5, 6, 9, 7][..], &[33, 17], &[4, 3, 32, 32]] {
        let c = shape[1];
        let inputs = [
            values(shape, 1, 2.0),
            values(&[c], 2, 1.0),
            values(&[c], 3, 1.0),
            values(shape, 4, 2.0),
        ];
        let ends: [fn(&[Tensor]) -> AfterNorm<'_>; 3] = [
            |_| AfterNorm::Nothing,
            |_| AfterNorm::Relu,
            |x| AfterNorm::AddRelu(&x[3]),
        ];
        for (after, count) in ends.iter().zip([3, 3, 4]) {
            let inputs = &inputs[..count];
            let train = |x: &[Tensor]| {
                Ok(kernels::batch_norm_train_then(&x[0], &x[1], &x[2], 1e-5, after(x))?.0)
            };
            compare("batch_norm_train", &train, inputs, 0, DType::F32);
            let eval = |x: &[Tensor]| {
                let device = x[0].device();
                let mean = values(&[c], 5, 1.0).to_device(device)?;
                let var = (values(&[c], 6, 1.0).to_device(device)? + 1.5)?;
                let given = [&mean, &var];
                kernels::batch_norm_eval_then(&x[0], given, &x[1], &x[2], 1e-5, after(x))
            };
            compare("batch_norm_eval", &eval, inputs, 0, DType::F32);
        }
        let on_gpu = [0, 1, 2].map(|i| inputs[i].to_device(&gpu()).unwrap());
        let norm = |x: &[Tensor]| kernels::batch_norm_train(&x[0], &x[1], &x[2], 1e-5).unwrap();
        let ((_, mean, var), (_, got_mean, got_var)) = (norm(&inputs), norm(&on_gpu));
        assert!(apart(&got_mean, &mean) < 5e-5 && apart(&got_var, &var) < 5e-5);
    }
}

/// Channels of the images, of the stem, and within and behind the bottleneck.
const WIDTHS: [usize; 4] = [3, 8, 16, 24];

/// A small ResNet: a stem with pooling, a block of two layers around which its input goes, and a
/// bottleneck with a stride and a projected shortcut. `x` is weight and batch norm of each layer.
fn resnet(
    images: &Tensor,
    x: &[Tensor],
    precision: Precision,
    running: Option<&[[&Tensor; 2]]>,
) -> Result<(Tensor, Vec<Tensor>)> {
    let layer = |i: usize, stride, padding| ConvNorm {
        weight: &x[3 * i],
        norm: [&x[3 * i + 1], &x[3 * i + 2]],
        stride,
        padding,
    };
    let pool = MaxPool {
        kernel: 3,
        stride: 2,
        padding: 1,
    };
    let blocks = [
        ConvBlock {
            branch: vec![layer(0, 2, 3)],
            shortcut: Shortcut::Nothing,
            pool: Some(pool),
        },
        ConvBlock {
            branch: vec![layer(1, 1, 1), layer(2, 1, 1)],
            shortcut: Shortcut::Input,
            pool: None,
        },
        ConvBlock {
            branch: vec![layer(3, 1, 0), layer(4, 2, 1), layer(5, 1, 0)],
            shortcut: Shortcut::Projection(layer(6, 2, 0)),
            pool: None,
        },
    ];
    let images = images.to_device(x[0].device())?;
    if let Some(running) = running {
        let ys = kernels::conv_blocks_eval(&images, &blocks, running, 1e-5, precision)?;
        return Ok((ys, Vec::new()));
    }
    let (ys, stats) = kernels::conv_blocks_train(&images, &blocks, 1e-5, precision)?;
    Ok((ys, stats.into_iter().flatten().collect()))
}

#[test]
#[ignore = "needs cuda"]
fn resnets_are_the_cpus_with_their_gradients_and_statistics() {
    let [images, stem, inner, outer] = WIDTHS;
    let convolutions = [
        [stem, images, 7],
        [stem, stem, 3],
        [stem, stem, 3],
        [inner, stem, 1],
        [inner, inner, 3],
        [outer, inner, 1],
        [outer, stem, 1],
    ];
    let seeded = (0..).zip(convolutions);
    let inputs: Vec<Tensor> = seeded
        .flat_map(|(i, [to, from, side])| {
            let bias = values(&[to], 3 * i + 2, 1.0);
            [
                values(&[to, from, side, side], 3 * i, 0.5),
                (values(&[to], 3 * i + 1, 0.5) + 1.0).unwrap(),
                bias,
            ]
        })
        .collect();
    for side in [33, 64] {
        let images = values(&[3, images, side, side], 77, 2.0);
        let of = |precision| {
            let images = &images;
            move |x: &[Tensor]| Ok(resnet(images, x, precision, None)?.0)
        };
        compare("resnet", &of(Precision::F32), &inputs, 0, DType::F32);
        let on_gpu: Vec<Tensor> = inputs
            .iter()
            .map(|x| x.to_device(&gpu()).unwrap())
            .collect();
        let stats = |x: &[Tensor]| resnet(&images, x, Precision::F32, None).unwrap().1;
        let (got, want) = (stats(&on_gpu), stats(&inputs));
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let d = apart(got, want);
            assert!(d < 5e-5, "statistics {i}: {d:e} apart");
        }
        let evaluated = |x: &[Tensor], stats: &[Tensor], precision| {
            let (pairs, _) = stats.as_chunks::<2>();
            let running: Vec<_> = pairs.iter().map(|[a, b]| [a, b]).collect();
            resnet(&images, x, precision, Some(&running)).unwrap().0
        };
        let (want, f32) = (evaluated(&inputs, &want, Precision::F32), Precision::F32);
        let d = apart(&evaluated(&on_gpu, &got, f32), &want);
        assert!(d < 5e-5, "evaluated: {d:e} apart");
        let d = apart(&evaluated(&on_gpu, &got, Precision::Bf16), &want);
        assert!(d < 2e-2, "evaluated in bf16: {d:e} apart");
        // Rounding moves one value in two hundred over the ReLU's edge, and with it its gradient.
        let want = run(&of(Precision::F32), &inputs);
        let got = run(&of(Precision::Bf16), &on_gpu);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got.dtype(), DType::F32);
            let (got, want) = (flat(got), flat(want));
            let square = |xs: &mut dyn Iterator<Item = f32>| xs.map(|x| x * x).sum::<f32>();
            let apart = square(&mut got.iter().zip(&want).map(|(a, b)| a - b));
            let share = (apart / square(&mut want.iter().copied())).sqrt();
            assert!(share < 0.3, "resnet in bf16, result {i}: {share:e} apart");
        }
    }
}

#[test]
#[ignore = "needs cuda"]
fn max_pooling_and_relu_are_the_cpus() {
    let inputs = [values(&[2, 3, 23, 19], 1, 3.0)];
    for dtype in TYPES {
        for (kernel, stride, padding) in [(3, 2, 1), (2, 2, 0), (7, 1, 3)] {
            let pool = |x: &[Tensor]| kernels::max_pool2d(&x[0], kernel, stride, padding);
            compare("max_pool2d", &pool, &inputs, 1, dtype);
        }
        compare("relu", &|x| kernels::relu(&x[0]), &inputs, 1, dtype);
    }
    let xs = Tensor::new(&[f32::NAN, -1.0, 0.0, 2.0], &gpu()).unwrap();
    let ys = flat(&kernels::relu(&xs).unwrap());
    assert!(ys[0].is_nan() && ys[1..] == [0.0, 0.0, 2.0]);
}
