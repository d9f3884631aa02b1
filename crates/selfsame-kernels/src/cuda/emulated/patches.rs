//! Patches and tokens.

use candle_core::{DType, Device, Tensor};

use super::{Memory, assert_close, dot, host, rounded, var};
use crate::composed;
use crate::cuda::launch::{Element, Patches};
use crate::testing::values;

#[test]
#[ignore = "needs g++"]
fn patches_and_tokens_follow_the_composed_ones() {
    for element in [Element::F32, Element::Bf16] {
        for (images, height, width, patch, dim) in
            [(1, 4, 4, 4, 2), (3, 12, 18, 6, 10), (2, 10, 75, 5, 6)]
        {
            patches(element, [images, 3, height, width], patch, dim);
        }
    }
}

fn patches(element: Element, shape: [usize; 4], patch: usize, dim: usize) {
    let what = format!("{element:?} {shape:?}, patch {patch}");
    let [images, channels, height, width] = shape;
    let pixels = values(shape.iter().product(), 1, 2.0);
    let num_patches = height / patch * (width / patch);
    let product = rounded(element, &values(images * num_patches * dim, 2, 1.0));
    let offsets = values((1 + num_patches) * dim, 3, 1.0);
    let grad = values(images * (1 + num_patches) * dim, 4, 1.0);
    let x = Tensor::from_slice(&pixels, &shape, &Device::Cpu).unwrap();
    let cut = composed::patchify(&x.to_dtype(DType::F64).unwrap(), patch).unwrap();
    let p = var(&product, &[images, num_patches, dim]);
    let o = var(&offsets, &[1 + num_patches, dim]);
    let first = p.zeros_like().unwrap().narrow(1, 0, 1).unwrap();
    let tokens = Tensor::cat(&[&first, p.as_tensor()], 1).unwrap();
    let tokens = tokens.broadcast_add(&o).unwrap();
    let grads = dot(&tokens, &grad).backward().unwrap();

    let mut memory = Memory::default();
    let [m_pixels, m_offsets, m_grad] = [&pixels, &offsets, &grad].map(|v| memory.f32(v));
    let m_product = memory.elements(element, &product);
    let m_cut = memory.unwritten(element, images * channels * height * width);
    let m_tokens = memory.unwritten(Element::F32, grad.len());
    let d_product = memory.unwritten(element, product.len());
    let sizes = Patches::new(element, shape, patch, dim).unwrap();
    memory.run(&[
        sizes.cut(m_pixels, m_cut),
        sizes.assemble(m_product, m_offsets, m_tokens),
        sizes.product_grad(m_grad, d_product),
    ]);
    let tolerance = match element {
        Element::F32 => 1e-6,
        Element::Bf16 => 1.0 / 256.0,
    };
    assert_close(&memory.read(element, m_cut), &host(&cut), tolerance, &what);
    let got = memory.read(Element::F32, m_tokens);
    assert_close(&got, &host(&tokens), 1e-6, &what);
    let want = host(grads.get(&p).unwrap());
    assert_close(&memory.read(element, d_product), &want, tolerance, &what);
}
