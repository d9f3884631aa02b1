//! Attention and its gradient.

use super::{Memory, assert_close, dot, host, rounded, var};
use crate::composed;
use crate::cuda::launch::{Attention, Element};
use crate::testing::values;

fn attention(element: Element, [batch, tokens, heads, head_dim]: [usize; 4], with_bias: bool) {
    let what = format!("{element:?}: {batch} x {tokens} tokens, {heads} heads of {head_dim}");
    let width = heads * head_dim;
    // Weights from almost none to almost all.
    let qkv = rounded(element, &values(batch * tokens * 3 * width, 1, 2.5));
    let grad = rounded(element, &values(batch * tokens * width, 2, 1.0));
    let bias = values(3 * width, 3, 0.5);
    let share = if with_bias { 1.0 } else { 0.0 };
    let biased = qkv.iter().zip(bias.iter().cycle());
    let biased: Vec<f32> = biased.map(|(x, b)| x + share * b).collect();
    let x = var(&biased, &[batch, tokens, 3 * width]);
    let want = composed::attention(&x, heads).unwrap();
    let grads = dot(&want, &grad).backward().unwrap();

    let mut memory = Memory::default();
    let [m_qkv, m_grad] = [&qkv, &grad].map(|values| memory.elements(element, values));
    let ys = memory.unwritten(element, grad.len());
    let d_qkv = memory.unwritten(element, qkv.len());
    let [lse, delta] = [0; 2].map(|_| memory.unwritten(Element::F32, batch * heads * tokens));
    let sizes = Attention::new(element, [batch, tokens, heads, head_dim]).unwrap();
    let m_bias = with_bias.then(|| memory.f32(&bias));
    let mut launches = vec![sizes.forward(m_qkv, m_bias, ys, lse)];
    launches.extend(sizes.backward([m_qkv, ys, lse, m_grad], m_bias, delta, d_qkv));
    memory.run(&launches);
    let tolerance = match element {
        Element::F32 => 5e-6,
        // The weights are rounded to bf16 too.
        Element::Bf16 => 1.0 / 150.0,
    };
    assert_close(&memory.read(element, ys), &host(&want), tolerance, &what);
    let want = host(grads.get(&x).unwrap());
    assert_close(&memory.read(element, d_qkv), &want, 2.0 * tolerance, &what);
}

#[test]
#[ignore = "needs g++"]
fn attention_and_its_gradient_follow_the_composed_ones() {
    for element in [Element::F32, Element::Bf16] {
        for head_dim in [32, 64] {
            for tokens in [1, 10, 37, 64, 65, 197] {
                attention(element, [2, tokens, 2, head_dim], tokens % 2 == 0);
            }
            attention(element, [1, 257, 1, head_dim], true);
        }
    }
}

#[test]
#[ignore = "needs g++"]
fn attention_over_1025_tokens_follows_the_composed_one() {
    for element in [Element::F32, Element::Bf16] {
        attention(element, [1, 1025, 1, 64], false);
    }
}
