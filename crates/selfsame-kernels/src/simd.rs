//! Inner loops, compiled once per instruction set and chosen at run time.
//!
//! Every loop is an ordinary safe function over slices with fixed-size lanes, which the compiler
//! turns into vector code; there are no intrinsics.
//! A [`Level`] is the proof that the processor has the instructions, so handing it out is the only
//! place that looks at the processor.
//! Levels may differ in the last bits, because only some fuse multiply and add.
#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "calls of functions compiled for a detected instruction set"
    )
)]

pub(crate) mod activation;
pub(crate) mod columns;
#[cfg(test)]
mod levels;
pub(crate) mod math;
pub(crate) mod norm;
pub(crate) mod reduce;
pub(crate) mod softmax;
pub(crate) mod update;

use std::sync::OnceLock;

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level(pub(in crate::simd) Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simd) enum Kind {
    /// What the compiler may assume anyway, and the reference for the others.
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The widest instruction set of this processor.
    pub(crate) fn best() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| {
            let levels = Level::available();
            *levels.last().expect("the baseline is always available")
        })
    }

    /// All instruction sets of this processor, the widest last.
    pub(crate) fn available() -> Vec<Level> {
        #[cfg_attr(
            not(target_arch = "x86_64"),
            expect(unused_mut, reason = "pushed to on x86-64")
        )]
        let mut levels = vec![Level(Kind::Baseline)];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2 {
                levels.push(Level(Kind::Avx2));
            }
            if avx2
                && !cfg!(selfsame_no_avx512)
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                levels.push(Level(Kind::Avx512));
            }
        }
        levels
    }
}

/// Defines `fn name(level, args…)`, which runs `body::<FMA>(args…)` compiled for `level`.
///
/// `body` must be `#[inline(always)]` and take one `const FMA: bool`, which says whether
/// multiply-add is one instruction (without it `f32::mul_add` would be a slow library call).
macro_rules! dispatch {
    ($(#[$meta:meta])* $name:ident => $body:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        pub(crate) fn $name(level: $crate::simd::Level, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                $body::<true>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                $body::<true>($($arg),*)
            }
            match level.0 {
                $crate::simd::Kind::Baseline => {
                    // Every ARM processor of 64 bits has NEON with it.
                    $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
                }
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Level::available` hands out this level only on processors that have
                // all of the features named above.
                $crate::simd::Kind::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::simd::Kind::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use dispatch;
