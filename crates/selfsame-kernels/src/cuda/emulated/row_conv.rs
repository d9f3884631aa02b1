//! Convolution of images whose channels lie side by side: kernels in the emulation, matrix products
//! on the host.

use super::conv::run;
use super::{Memory, assert_close, dot, host, rounded, var};
use crate::composed;
use crate::cuda::launch::{
    ConvStep, Element, Images, RowConv, RowWeight, Target, weight_table, weights_from_matrices,
    weights_to_matrices,
};
use crate::testing::{channels_last, values};

/// Batch and sides of the images, channels, then kernel, stride and padding.
fn row_conv(
    element: Element,
    images: Images,
    [batch, h, w]: [usize; 3],
    [from, to]: [usize; 2],
    [kernel, stride, padding]: [usize; 3],
) {
    let what =
        format!("{element:?} {images:?} {batch} x {from} x {h} x {w}, {kernel}/{stride}/{padding}");
    let output = [h, w].map(|len| (len + 2 * padding - kernel) / stride + 1);
    let (shape, weight_shape) = ([batch, from, h, w], [to, from, kernel, kernel]);
    let out_shape = [batch, to, output[0], output[1]];
    let xs = rounded(element, &values(batch * from * h * w, 1, 2.0));
    let weight = rounded(element, &values(to * from * kernel * kernel, 2, 1.0));
    let grad = rounded(element, &values(out_shape.iter().product(), 3, 1.0));
    let (x, wt) = (var(&xs, &shape), var(&weight, &weight_shape));
    let want = composed::conv2d(&x, &wt, stride, padding).unwrap();
    let grads = dot(&want, &grad).backward().unwrap();

    let conv = RowConv::new(
        element,
        images,
        shape,
        weight_shape,
        output,
        [stride, padding],
    )
    .unwrap();
    let mut memory = Memory::default();
    let m_xs = match images {
        Images::Planes => memory.f32(&xs),
        Images::Rows => memory.elements(element, &channels_last(&xs, shape)),
    };
    let m_grad = memory.elements(element, &channels_last(&grad, out_shape));
    let (plain, d_plain) = (
        memory.f32(&weight),
        memory.unwritten(Element::F32, weight.len()),
    );
    let matrix = memory.unwritten(element, to * conv.ld());
    let d_matrix = memory.unwritten(Element::F32, to * conv.ld());
    let ys = memory.unwritten(element, conv.output_len());
    let dx = memory.unwritten(element, conv.input_len());
    let twice = memory.elements(element, &channels_last(&xs, shape));
    let mut table = |plain, matrix| {
        let weight = RowWeight { plain, matrix };
        memory.table(&weight_table(&[(conv, weight)]))
    };
    let (table, back) = (table(plain, matrix), table(d_plain, d_matrix));

    let mut room = |element, len| Ok(memory.unwritten(element, len));
    let launch = weights_to_matrices(element, table, 1).unwrap();
    let mut steps = vec![ConvStep::Launch(launch)];
    steps.extend(conv.forward([m_xs, matrix], ys, &mut room).unwrap());
    let has_dx = images == Images::Rows;
    let read = [m_xs, matrix, m_grad];
    let to_dx = has_dx.then_some(Target::new(dx));
    steps.extend(
        conv.backward(read, to_dx, Some(d_matrix), &mut room)
            .unwrap(),
    );
    if has_dx {
        // Once more without the weight's, added to what must not be lost.
        let to_twice = Some(Target {
            place: twice,
            add: true,
        });
        steps.extend(conv.backward(read, to_twice, None, &mut room).unwrap());
    }
    let launch = weights_from_matrices(back, 1).unwrap();
    steps.push(ConvStep::Launch(launch));
    run(&mut memory, &steps);

    // Each part of a gradient is rounded before they are added up.
    let tolerance = match element {
        Element::F32 => 1e-6,
        Element::Bf16 => 1.0 / 128.0,
    };
    let as_rows = |values: &[f64], shape| channels_last(values, shape);
    let got = |place| memory.read(element, place);
    let want = as_rows(&host(&want), out_shape);
    assert_close(&got(ys), &want, tolerance, &what);
    let d_w = host(grads.get(&wt).unwrap());
    assert_close(&memory.read(Element::F32, d_plain), &d_w, 1e-6, &what);
    if has_dx {
        let d_x = as_rows(&host(grads.get(&x).unwrap()), shape);
        assert_close(&got(dx), &d_x, tolerance, &what);
        let before = channels_last(&xs, shape);
        let sums: Vec<f64> = d_x
            .iter()
            .zip(before)
            .map(|(d, x)| d + f64::from(x))
            .collect();
        assert_close(&got(twice), &sums, tolerance, &what);
    }
}

#[test]
#[ignore = "needs g++"]
fn convolutions_of_rows_and_their_gradients_follow_the_composed_ones() {
    for element in [Element::F32, Element::Bf16] {
        let rows = |sizes, channels, of| row_conv(element, Images::Rows, sizes, channels, of);
        rows([3, 5, 4], [8, 16], [1, 1, 0]);
        rows([2, 9, 8], [16, 8], [1, 2, 0]);
        rows([2, 7, 6], [8, 24], [3, 1, 1]);
        rows([3, 9, 12], [24, 8], [3, 2, 1]);
        rows([1, 5, 5], [8, 8], [3, 2, 0]);
        let planes = |sizes, channels, of| row_conv(element, Images::Planes, sizes, channels, of);
        planes([2, 23, 19], [3, 8], [7, 2, 3]);
        planes([2, 6, 5], [5, 16], [3, 1, 1]);
        planes([1, 4, 4], [8, 8], [1, 1, 0]);
    }
}
