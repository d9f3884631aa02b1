//! Max pooling of rows and the exchange of rows and planes: comparisons and copies.

use super::pool::{assert_same, coarse, on_cpu};
use super::{Memory, rounded};
use crate::cuda::launch::{Element, Planes, RowPool};
use crate::testing::{channels_last, values};
use candle_core::Tensor;

fn max_pool(element: Element, shape: [usize; 4], of: [usize; 3]) {
    let what = format!("{element:?} {shape:?} {of:?}");
    let [kernel, stride, padding] = of;
    let xs = coarse(shape.iter().product(), 1);
    let op = |x: &Tensor| crate::max_pool2d(x, kernel, stride, padding);
    let (want, grad, d_x) = on_cpu(op, &xs, &shape, element);
    let out = want.dims4().unwrap();
    let sizes = RowPool::new(element, shape, [out.2, out.3], of).unwrap();
    let mut memory = Memory::default();
    let m_xs = memory.elements(element, &channels_last(&xs, shape));
    let m_grad = memory.elements(element, &channels_last(&grad, out.into()));
    let ys = memory.unwritten(element, sizes.output_len());
    let winners = memory.bytes(vec![0xff; sizes.output_len()]);
    let dx = memory.unwritten(element, sizes.input_len());
    memory.run(&[
        sizes.forward(m_xs, ys, winners),
        sizes.grad(winners, m_grad, dx),
    ]);
    let as_rows = |xs: &Tensor| xs.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
    assert_same(&memory.read(element, ys), &as_rows(&want), &what);
    let d_x: Vec<f32> = as_rows(&d_x).flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(memory.read(element, dx), rounded(element, &d_x), "{what}");
}

#[test]
#[ignore = "needs g++"]
fn max_pooling_of_rows_and_its_gradient_have_the_bits_of_the_cpu() {
    for element in [Element::F32, Element::Bf16] {
        max_pool(element, [2, 24, 23, 19], [3, 2, 1]);
        max_pool(element, [1, 8, 8, 8], [2, 2, 0]);
        max_pool(element, [1, 16, 15, 31], [15, 4, 7]);
    }
}

#[test]
#[ignore = "needs g++"]
fn rows_become_planes_and_planes_rows() {
    for element in [Element::F32, Element::Bf16] {
        for shape in [[2, 72, 7, 7], [3, 8, 1, 1], [1, 33, 11, 6]] {
            let [batch, channels, h, w] = shape;
            let xs = rounded(element, &values(shape.iter().product(), 1, 1.0));
            let rows = channels_last(&xs, shape);
            let mut memory = Memory::default();
            let from_planes = memory.f32(&xs);
            let from_rows = memory.elements(element, &rows);
            let to_planes = memory.unwritten(Element::F32, xs.len());
            let to_rows = memory.unwritten(element, xs.len());
            let sizes = Planes::new(element, batch, channels, h * w).unwrap();
            memory.run(&[
                sizes.planes_of_rows(from_rows, to_planes),
                sizes.rows_of_planes(from_planes, to_rows),
            ]);
            assert_eq!(memory.read(Element::F32, to_planes), xs);
            assert_eq!(memory.read(element, to_rows), rows);
        }
    }
}
