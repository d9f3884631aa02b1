use std::fmt;
use std::str::FromStr;

use crate::error::NameError;

/// Which instructions the operations use; every level gives the same bytes.
///
/// A value exists only for what this machine can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(pub(super) Kind);

/// Never made outside this file, except by copying: all but `Scalar` prove what they name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Level {
    /// Plain Rust, the reference of all others.
    pub const SCALAR: Self = Self(Kind::Scalar);

    /// The fastest that this machine has.
    pub fn best() -> Self {
        Self::available()
            .next_back()
            .expect("the scalar level is always there")
    }

    /// All that this machine has, the fastest last.
    pub fn available() -> impl DoubleEndedIterator<Item = Self> {
        let levels = [
            Some(Kind::Scalar),
            #[cfg(target_arch = "x86_64")]
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"))
                .then_some(Kind::Avx2),
            // The set of Intel's Ice Lake and AMD's Zen 4 and of what came after them.
            #[cfg(target_arch = "x86_64")]
            (!cfg!(selfsame_no_avx512)
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vbmi")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma"))
            .then_some(Kind::Avx512),
            // The order of a vector's numbers in memory is that of little-endian machines.
            #[cfg(target_arch = "aarch64")]
            (cfg!(target_endian = "little") && std::arch::is_aarch64_feature_detected!("neon"))
                .then_some(Kind::Neon),
        ];
        levels.into_iter().flatten().map(Self)
    }

    /// `scalar`, `avx2`, `avx512` or `neon`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
        }
    }
}

impl Default for Level {
    fn default() -> Self {
        Self::best()
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Level {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let found = Self::available().find(|level| level.name() == name);
        found.ok_or_else(|| NameError::Level { name: name.into() })
    }
}

/// Defines a function of a [`Level`] from one body, which must be `#[inline(always)]`: compiled
/// once for every machine, once for AVX2 with FMA, once for AVX-512 and once for NEON.
macro_rules! by_level {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:path;) => {
        $(#[$doc])*
        pub(crate) fn $name(level: $crate::simd::Level, $($arg: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $result)? {
                $body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx2,fma")]
            fn avx512($($arg: $type),*) $(-> $result)? {
                $body($($arg),*)
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon($($arg: $type),*) $(-> $result)? {
                $body($($arg),*)
            }
            $crate::simd::level::dispatch!(level, {
                scalar: $body($($arg),*),
                avx2: avx2($($arg),*),
                avx512: avx512($($arg),*),
                neon: neon($($arg),*),
            })
        }
    };
}
pub(crate) use by_level;

/// Picks one of the calls by a [`Level`].
macro_rules! dispatch {
    ($level:expr, {
        scalar: $scalar:expr, avx2: $avx2:expr, avx512: $avx512:expr, neon: $neon:expr $(,)?
    }) => {
        match $level.0 {
            $crate::simd::level::Kind::Scalar => $scalar,
            #[cfg(target_arch = "x86_64")]
            #[expect(
                unsafe_code,
                reason = "the kind proves that the machine has the instructions"
            )]
            // SAFETY: `Level::available` makes this kind only where the machine has AVX2 and FMA,
            // and the function called is compiled for no other instructions.
            $crate::simd::level::Kind::Avx2 => unsafe { $avx2 },
            #[cfg(target_arch = "x86_64")]
            #[expect(
                unsafe_code,
                reason = "the kind proves that the machine has the instructions"
            )]
            // SAFETY: likewise for the AVX-512 extensions that `Level::available` lists.
            $crate::simd::level::Kind::Avx512 => unsafe { $avx512 },
            #[cfg(target_arch = "aarch64")]
            #[expect(
                unsafe_code,
                reason = "the kind proves that the machine has the instructions"
            )]
            // SAFETY: likewise for NEON.
            $crate::simd::level::Kind::Neon => unsafe { $neon },
        }
    };
}
pub(super) use dispatch;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_ascend_from_scalar_and_are_found_by_name() {
        let all: Vec<Level> = Level::available().collect();
        assert_eq!(all[0], Level::SCALAR);
        assert!(all.is_sorted());
        assert_eq!(all.last(), Some(&Level::best()));
        for level in all {
            assert_eq!(level.name().parse(), Ok(level));
        }
        let error: Box<dyn std::error::Error> = "avx1024".parse::<Level>().unwrap_err().into();
        let text = "\"avx1024\" is not a level of instructions that this machine has";
        assert_eq!(error.to_string(), text);
    }
}
