//! Convolution: kernels in the emulation, matrix products on the host.

use super::{Memory, assert_close, dot, host, rounded, var};
use crate::composed;
use crate::cuda::launch::{Conv, ConvStep, Element, Factor, Product, Target};
use crate::testing::values;

impl Factor<u32> {
    /// Where an element of a member of the batch lies.
    fn at(&self, member: u32, row: u32, col: u32) -> usize {
        let (row, col) = match self.transposed {
            true => (col, row),
            false => (row, col),
        };
        assert!(col < self.ld);
        self.start + member as usize * self.step + row as usize * self.ld as usize + col as usize
    }
}

/// What cuBLAS does on a device.
fn multiply(memory: &mut Memory, product: &Product<u32>) {
    let (left, right, result) = (product.left, product.right, product.result);
    let [a, b] = [left, right].map(|factor| memory.read(factor.element, factor.place));
    let mut c = memory.read(result.element, result.place);
    for member in 0..product.batch {
        for row in 0..product.rows {
            for col in 0..product.cols {
                let mut sum = 0f64;
                for i in 0..product.inner {
                    let pair = [a[left.at(member, row, i)], b[right.at(member, i, col)]];
                    sum += f64::from(pair[0]) * f64::from(pair[1]);
                }
                let c = &mut c[result.at(member, row, col)];
                *c = sum as f32 + if product.add { *c } else { 0.0 };
            }
        }
    }
    memory.write(result.element, result.place, &c);
}

pub(super) fn run(memory: &mut Memory, steps: &[ConvStep<u32>]) {
    let mut launches = Vec::new();
    for step in steps {
        match step {
            ConvStep::Launch(launch) => launches.push(launch.clone()),
            ConvStep::Product(product) => {
                if !launches.is_empty() {
                    memory.run(&std::mem::take(&mut launches));
                }
                multiply(memory, product);
            }
        }
    }
    if !launches.is_empty() {
        memory.run(&launches);
    }
}

/// Batch and side of the images, channels, then kernel, stride and padding.
fn conv2d(
    element: Element,
    [batch, h, w]: [usize; 3],
    [from, to]: [usize; 2],
    [kernel, stride, padding]: [usize; 3],
) {
    let what = format!("{element:?} {batch} x {from} x {h} x {w}, {kernel}/{stride}/{padding}");
    let output = [h, w].map(|len| (len + 2 * padding - kernel) / stride + 1);
    let (shape, weight_shape) = ([batch, from, h, w], [to, from, kernel, kernel]);
    let result_len = batch * to * output[0] * output[1];
    let xs = rounded(element, &values(batch * from * h * w, 1, 2.0));
    let weight = rounded(element, &values(to * from * kernel * kernel, 2, 1.0));
    let grad = rounded(element, &values(result_len, 3, 1.0));
    let (x, w) = (var(&xs, &shape), var(&weight, &weight_shape));
    let want = composed::conv2d(&x, &w, stride, padding).unwrap();
    let grads = dot(&want, &grad).backward().unwrap();

    let sizes = Conv::new(element, shape, weight_shape, output, [stride, padding]).unwrap();
    let mut memory = Memory::default();
    let [m_xs, m_grad, m_weight] = [&xs, &grad, &weight].map(|values| memory.f32(values));
    let twice = memory.f32(&xs);
    let ys = memory.unwritten(Element::F32, result_len);
    let [dx, dw] = [xs.len(), weight.len()].map(|len| memory.unwritten(Element::F32, len));
    let mut room = |element, len| Ok(memory.unwritten(element, len));
    let mut steps = sizes.forward([m_xs, m_weight], ys, &mut room).unwrap();
    let read = [m_xs, m_weight, m_grad];
    let to_dx = Some(Target::new(dx));
    steps.extend(sizes.backward(read, to_dx, Some(dw), &mut room).unwrap());
    // Once more without the weight's, added to what must not be lost.
    let to_twice = Some(Target {
        place: twice,
        add: true,
    });
    steps.extend(sizes.backward(read, to_twice, None, &mut room).unwrap());
    run(&mut memory, &steps);
    assert_close(&memory.read(Element::F32, ys), &host(&want), 1e-6, &what);
    let d_w = host(grads.get(&w).unwrap());
    assert_close(&memory.read(Element::F32, dw), &d_w, 1e-6, &what);
    // Each gradient of a window is rounded before they are added up.
    let tolerance = match element {
        Element::F32 => 1e-6,
        Element::Bf16 => 1.0 / 256.0,
    };
    let d_x = host(grads.get(&x).unwrap());
    assert_close(&memory.read(Element::F32, dx), &d_x, tolerance, &what);
    let sums: Vec<f64> = d_x
        .iter()
        .zip(&xs)
        .map(|(d, x)| d + f64::from(*x))
        .collect();
    assert_close(&memory.read(Element::F32, twice), &sums, tolerance, &what);
}

#[test]
#[ignore = "needs g++"]
fn convolutions_and_their_gradients_follow_the_composed_ones() {
    for element in [Element::F32, Element::Bf16] {
        conv2d(element, [1, 1, 1], [1, 1], [1, 1, 0]);
        conv2d(element, [3, 7, 5], [9, 4], [1, 1, 0]);
        conv2d(element, [2, 16, 24], [3, 17], [1, 1, 0]);
        conv2d(element, [3, 9, 8], [5, 6], [1, 2, 0]);
        conv2d(element, [2, 7, 6], [9, 3], [3, 1, 1]);
        conv2d(element, [2, 32, 32], [2, 3], [3, 2, 1]);
        conv2d(element, [3, 5, 5], [2, 3], [3, 2, 0]);
        conv2d(element, [2, 23, 19], [3, 5], [7, 2, 3]);
    }
}
