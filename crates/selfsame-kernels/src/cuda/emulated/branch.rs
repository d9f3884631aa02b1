//! The ends of a block's branches.

use candle_core::Tensor;

use super::{Memory, assert_close, dot, host, rounded, var};
use crate::composed;
use crate::cuda::launch::{Added, Branch, Element, NormGrad, Normed, ProductGrad, sum_parts};
use crate::testing::values;

const TOKENS: usize = 5;

fn tolerance(element: Element) -> f64 {
    match element {
        Element::F32 => 4e-6,
        Element::Bf16 => 1.0 / 256.0,
    }
}

/// Rows of the residual stream of which every fifth goes on, or all of them.
#[derive(Clone, Copy, PartialEq)]
enum Going {
    All,
    First,
}

/// `sums = xs + factor · (product + bias)`, its norm, and the way back from both.
fn branch(element: Element, images: usize, width: usize, going: Going, with_factors: bool) {
    let what = format!("{element:?}, {images} images, width {width}, factors {with_factors}");
    let every = if going == Going::First { TOKENS } else { 1 };
    let (all, tokens) = (images * TOKENS, TOKENS / every);
    let rows = all / every;
    let xs = values(all * width, 1, 2.0);
    let product = rounded(element, &values(rows * width, 2, 2.0));
    let (bias, weight, norm_bias) = (
        values(width, 3, 1.0),
        values(width, 4, 1.5),
        values(width, 5, 1.0),
    );
    let factors = match with_factors {
        true => values(images, 6, 1.5),
        false => vec![1.0; images],
    };
    let residual = values(rows * width, 7, 1.0);
    let d_normed = rounded(element, &values(rows * width, 8, 1.0));

    let x = var(&xs, &[images, TOKENS, width]);
    let p = var(&product, &[images, tokens, width]);
    let [b, w, nb] = [&bias, &weight, &norm_bias].map(|values| var(values, &[width]));
    let f = var(&factors, &[images, 1, 1]);
    let added = p.broadcast_add(&b).unwrap().broadcast_mul(&f).unwrap();
    let sums = (x.narrow(1, 0, tokens).unwrap() + added).unwrap();
    let normed = composed::layer_norm(&sums, &w, &nb, 1e-5).unwrap();
    let loss = (dot(&sums, &residual) + dot(&normed, &d_normed)).unwrap();
    let grads = loss.backward().unwrap();

    let mut memory = Memory::default();
    let [m_product, m_d_normed] = [&product, &d_normed].map(|v| memory.elements(element, v));
    let [m_xs, m_bias, m_weight, m_norm_bias, m_residual] =
        [&xs, &bias, &weight, &norm_bias, &residual].map(|v| memory.f32(v));
    let m_factors = with_factors.then(|| memory.f32(&factors));
    let [m_sums, d_sums] = [0; 2].map(|_| memory.unwritten(Element::F32, rows * width));
    let [m_normed, d_product] = [0; 2].map(|_| memory.unwritten(element, rows * width));
    let stats = memory.unwritten(Element::F32, 2 * rows);
    let sizes = Branch::new(element, rows, width, tokens).unwrap();
    let num_parts = sizes.parts().num_parts;
    let parts = memory.unwritten(Element::F32, num_parts as usize * 3 * width);
    let totals = memory.unwritten(Element::F32, 3 * width);
    let added = Added {
        product: m_product,
        bias: m_bias,
        factors: m_factors,
        sums: m_sums,
    };
    let norm = Normed {
        weight: m_weight,
        bias: m_norm_bias,
        normed: m_normed,
        stats,
        eps: 1e-5,
    };
    let norm_grad = NormGrad {
        xs: m_sums,
        stats,
        weight: m_weight,
        d_normed: m_d_normed,
        d_sums,
    };
    let product_grad = ProductGrad {
        factors: m_factors,
        d_product,
    };
    let forward = sizes.forward(m_xs, every, Some(added), Some(norm));
    let backward = sizes.grad(
        Some(m_residual),
        1,
        Some(norm_grad),
        Some(product_grad),
        parts,
    );
    memory.run(&[
        forward.unwrap(),
        backward.unwrap(),
        sum_parts(parts, totals, num_parts, 3 * width).unwrap(),
    ]);
    let f32s = |place| memory.read(Element::F32, place);
    assert_close(&f32s(m_sums), &host(&sums), 2e-6, &what);
    let got = memory.read(element, m_normed);
    assert_close(&got, &host(&normed), tolerance(element), &what);
    let of = |var: &Tensor| host(grads.get(var).unwrap());
    let d_x = grads.get(&x).unwrap().narrow(1, 0, tokens).unwrap();
    assert_close(&f32s(d_sums), &host(&d_x), 1e-5, &what);
    let got = memory.read(element, d_product);
    assert_close(&got, &of(&p), 2.0 * tolerance(element), &what);
    let want = [of(&w), of(&nb), of(&b)].concat();
    assert_close(&f32s(totals), &want, 1e-5, &what);
}

#[test]
#[ignore = "needs g++"]
fn a_branch_with_its_norm_and_both_gradients_follow_the_composed_ones() {
    for element in [Element::F32, Element::Bf16] {
        for (images, width) in [(1, 2), (3, 64), (7, 190), (4, 384), (2, 386), (3, 1024)] {
            for going in [Going::All, Going::First] {
                branch(element, images, width, going, images % 2 == 1);
            }
        }
    }
}

/// A norm alone, whose residual reaches every fifth row; a product alone.
#[test]
#[ignore = "needs g++"]
fn a_norm_and_a_product_stand_alone_too() {
    let (images, width) = (3, 128);
    let rows = images * TOKENS;
    let xs = values(rows * width, 1, 2.0);
    let (weight, bias) = (values(width, 2, 1.5), values(width, 3, 1.0));
    let residual = values(images * width, 4, 1.0);
    let d_normed = values(rows * width, 5, 1.0);
    let (x, w, b) = (
        var(&xs, &[images, TOKENS, width]),
        var(&weight, &[width]),
        var(&bias, &[width]),
    );
    let normed = composed::layer_norm(&x, &w, &b, 1e-5).unwrap();
    let first = x.narrow(1, 0, 1).unwrap();
    let loss = (dot(&normed, &d_normed) + dot(&first, &residual)).unwrap();
    let grads = loss.backward().unwrap();

    let mut memory = Memory::default();
    let [m_xs, m_weight, m_bias, m_residual, m_d_normed] =
        [&xs, &weight, &bias, &residual, &d_normed].map(|v| memory.f32(v));
    let [m_normed, d_sums] = [0; 2].map(|_| memory.unwritten(Element::F32, rows * width));
    let stats = memory.unwritten(Element::F32, 2 * rows);
    let sizes = Branch::new(Element::F32, rows, width, TOKENS).unwrap();
    let few = Branch::new(Element::F32, images, width, 1).unwrap();
    let len = sizes.parts().num_parts as usize * 3 * width;
    let [parts, of_few] = [0; 2].map(|_| memory.unwritten(Element::F32, len));
    let d_product = memory.unwritten(Element::F32, images * width);
    let factors = memory.f32(&[0.0, 1.0, 2.0]);
    let norm = Normed {
        weight: m_weight,
        bias: m_bias,
        normed: m_normed,
        stats,
        eps: 1e-5,
    };
    let norm_grad = NormGrad {
        xs: m_xs,
        stats,
        weight: m_weight,
        d_normed: m_d_normed,
        d_sums,
    };
    let product_grad = ProductGrad {
        factors: Some(factors),
        d_product,
    };
    let launches = [
        sizes.forward(m_xs, 1, None, Some(norm)),
        sizes.grad(Some(m_residual), TOKENS, Some(norm_grad), None, parts),
        few.grad(Some(m_residual), 1, None, Some(product_grad), of_few),
    ];
    memory.run(&launches.map(Result::unwrap));
    let got = |place| memory.read(Element::F32, place);
    assert_close(&got(m_normed), &host(&normed), 4e-6, "norm");
    assert_close(
        &got(d_sums),
        &host(grads.get(&x).unwrap()),
        1e-5,
        "residual",
    );
    let scaled: Vec<f64> = (0..images * width)
        .map(|i| f64::from(residual[i]) * (i / width) as f64)
        .collect();
    assert_close(&got(d_product), &scaled, 1e-6, "product");
}
