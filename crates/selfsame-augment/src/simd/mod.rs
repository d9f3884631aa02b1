//! Vector instructions chosen at run time, and nothing else that is `unsafe`.
//!
//! A routine here exists beside a scalar one in [`crate::ops`] and gives the same bytes; tests hold
//! the two equal on every [`Level`] the machine has. There are two kinds:
//! - plain Rust compiled once more with wider instructions ([`by_level`]): `color`, `normalize`, `weights`;
//! - intrinsics where the compiler finds no good sequence: `resample`, `transpose`, `blur`, `bytes`
//!   and saturation in `color`, most of them written once over the vectors of `words`.
//!
//! The second kind reads and writes through the arrays of `lanes`, whose types say how many bytes
//! there are; so no routine relies on padding behind a slice.

pub(crate) mod blur;
pub(crate) mod bytes;
pub(crate) mod color;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod lanes;
mod level;
pub(crate) mod normalize;
pub(crate) mod resample;
#[cfg(all(test, unix))]
mod tests;
pub(crate) mod transpose;
pub(crate) mod weights;
pub(crate) mod words;

pub use level::Level;
pub(crate) use level::by_level;
