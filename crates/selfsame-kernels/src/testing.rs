//! What the unit tests of this crate share.

pub(crate) use candle_core::cpu::erf::erf_f64 as erf;

/// `n` reproducible values between −`size` and `size`.
pub(crate) fn values(n: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * size
        })
        .collect()
}

/// `[B, C, H, W]` as `[B, H, W, C]`.
pub(crate) fn channels_last<T: Copy>(values: &[T], [batch, channels, h, w]: [usize; 4]) -> Vec<T> {
    let positions = h * w;
    let at = |image, position, channel| (image * channels + channel) * positions + position;
    (0..batch)
        .flat_map(|image| (0..positions).map(move |position| (image, position)))
        .flat_map(|(image, position)| {
            (0..channels).map(move |channel| values[at(image, position, channel)])
        })
        .collect()
}

/// Fails with the first pair that is further apart than `tolerance · max(1, |b|)`.
pub(crate) fn assert_close(a: &[f32], b: &[f32], tolerance: f32, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let apart = (a - b).abs();
        assert!(
            apart <= tolerance * b.abs().max(1.0),
            "{what}: element {i} is {a}, not {b}"
        );
    }
}
