//! First values of the parameters, drawn on the host from (seed, parameter name).

use crate::random::{Stream, name_key};

const PURPOSE: u64 = 0x696e_6974 << 32; // "init"

/// A distribution that a parameter starts from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Every value the same.
    Constant(f64),
    /// Uniform in [−bound, bound).
    Uniform {
        /// Half the width of the interval.
        bound: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Normal with mean 0, clipped to [−2, 2].
    ///
    /// The limits are absolute, as in timm's `trunc_normal_(a=-2, b=2)`: at the usual std of 0.02
    /// they are never reached.
    TruncNormal {
        /// Standard deviation before clipping.
        std: f64,
    },
}

impl Init {
    /// All zeros.
    pub const ZEROS: Init = Init::Constant(0.0);
    /// All ones.
    pub const ONES: Init = Init::Constant(1.0);

    /// PyTorch's default for the weight and bias of `nn.Linear` and `nn.Conv2d`:
    /// `kaiming_uniform_(a=sqrt(5))`, which is U(−1/√fan_in, 1/√fan_in).
    pub fn pytorch_default(fan_in: usize) -> Self {
        Init::Uniform {
            bound: 1.0 / (fan_in as f64).sqrt(),
        }
    }

    /// `kaiming_normal_(mode="fan_out", nonlinearity="relu")` of a convolution, as in ResNets.
    pub fn kaiming_fan_out(out_channels: usize, kernel: usize) -> Self {
        Init::Normal {
            std: (2.0 / (out_channels * kernel * kernel) as f64).sqrt(),
        }
    }

    /// `count` values in row-major order; a pure function of the arguments.
    pub fn draw(self, count: usize, seed: u64, name: &str) -> Vec<f32> {
        let mut stream = Stream::new([seed, name_key(name), PURPOSE, 0]);
        match self {
            Init::Constant(value) => vec![value as f32; count],
            Init::Uniform { bound } => (0..count)
                .map(|_| ((2.0 * stream.uniform() - 1.0) * bound) as f32)
                .collect(),
            Init::Normal { std } => normals(&mut stream, count, std),
            Init::TruncNormal { std } => {
                let mut values = normals(&mut stream, count, std);
                values
                    .iter_mut()
                    .for_each(|value| *value = value.clamp(-2.0, 2.0));
                values
            }
        }
    }
}

fn normals(stream: &mut Stream, count: usize, std: f64) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let (first, second) = stream.normal_pair();
        values.push((first * std) as f32);
        values.push((second * std) as f32);
    }
    values.truncate(count);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_and_name_give_the_same_bits() {
        let init = Init::TruncNormal { std: 0.02 };
        assert_eq!(
            init.draw(1001, 7, "a.weight"),
            init.draw(1001, 7, "a.weight")
        );
        assert_ne!(
            init.draw(1001, 7, "a.weight"),
            init.draw(1001, 8, "a.weight")
        );
        assert_ne!(
            init.draw(1001, 7, "a.weight"),
            init.draw(1001, 7, "b.weight")
        );
    }

    #[test]
    fn each_distribution_has_its_spread() {
        let spread = |init: Init| {
            let values = init.draw(20_000, 1, "w");
            (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 20_000.0).sqrt()
        };
        let close = |found: f64, expected: f64| (found / expected - 1.0).abs() < 0.02;
        assert!(close(spread(Init::TruncNormal { std: 0.02 }), 0.02));
        assert!(close(
            spread(Init::pytorch_default(192)),
            (1.0f64 / 192.0 / 3.0).sqrt()
        ));
        assert!(close(
            spread(Init::kaiming_fan_out(64, 3)),
            (2.0f64 / 576.0).sqrt()
        ));
        let clipped = Init::TruncNormal { std: 2.0 }.draw(1000, 1, "w");
        assert!(clipped.iter().all(|value| value.abs() <= 2.0));
        assert!(clipped.contains(&2.0));
    }
}
