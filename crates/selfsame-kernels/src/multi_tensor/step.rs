//! A whole optimizer step over all weights: norm, clipping, the rule and the momentum teacher.

use super::{
    AdamW, Lars, Sgd, adamw_step, check, ema, lars_step, norm_of_squares, sgd_step, sum_of_squares,
};
use candle_core::{DType, Result, Tensor, bail};

/// Added to a norm before it divides (`torch.nn.utils.clip_grad_norm_`; `utils.py`,
/// `clip_gradients`).
const NORM_EPS: f64 = 1e-6;

/// How gradients are clipped: each is scaled by a [`clip_factor`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Clip {
    /// Not at all.
    #[default]
    Nothing,
    /// By the norm over all gradients together.
    Global(f64),
    /// By its own norm.
    Each(f64),
}

/// One weight of [`whole_step`]; all tensors alike in shape and contiguous.
#[derive(Clone, Copy, Debug)]
pub struct StepWeight<'a> {
    /// What is trained.
    pub param: &'a Tensor,
    /// Without one the weight stays as it is and only goes into the teacher.
    pub grad: Option<&'a Tensor>,
    /// Without one the gradient counts in the norm and is not applied.
    pub update: Option<Update<'a>>,
    /// What follows the weight, if anything does.
    pub teacher: Option<&'a Tensor>,
}

/// How a weight moves along its gradient, and the state that this takes; `grad_scale` is 1.
#[derive(Clone, Copy, Debug)]
pub enum Update<'a> {
    /// [`adamw_step`].
    AdamW {
        /// First moment.
        exp_avg: &'a Tensor,
        /// Second moment.
        exp_avg_sq: &'a Tensor,
        /// Of this weight; betas and eps are the same for all.
        options: AdamW,
    },
    /// [`sgd_step`].
    Sgd {
        /// The momentum buffer.
        momentum_buffer: &'a Tensor,
        /// Of this weight; the momentum is the same for all.
        options: Sgd,
    },
    /// [`lars_step`].
    Lars {
        /// The momentum buffer.
        mu: &'a Tensor,
        /// Of this weight; the momentum is the same for all.
        options: Lars,
    },
}

/// What is the same for all weights of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Constants {
    AdamW { beta1: f64, beta2: f64, eps: f64 },
    Sgd { momentum: f64 },
    Lars { momentum: f64 },
}

impl<'a> StepWeight<'a> {
    fn tensors(&self) -> Vec<&'a Tensor> {
        let mut tensors = vec![self.param];
        tensors.extend(self.grad);
        match self.update {
            None => {}
            Some(Update::AdamW {
                exp_avg,
                exp_avg_sq,
                ..
            }) => tensors.extend([exp_avg, exp_avg_sq]),
            Some(Update::Sgd {
                momentum_buffer: buffer,
                ..
            })
            | Some(Update::Lars { mu: buffer, .. }) => tensors.push(buffer),
        }
        tensors.extend(self.teacher);
        tensors
    }
}

impl Update<'_> {
    pub(crate) fn constants(&self) -> Constants {
        match self {
            Update::AdamW { options, .. } => Constants::AdamW {
                beta1: options.beta1,
                beta2: options.beta2,
                eps: options.eps,
            },
            Update::Sgd { options, .. } => Constants::Sgd {
                momentum: options.momentum,
            },
            Update::Lars { options, .. } => Constants::Lars {
                momentum: options.momentum,
            },
        }
    }

    fn grad_scale(&self) -> f64 {
        match self {
            Update::AdamW { options, .. } => options.grad_scale,
            Update::Sgd { options, .. } => options.grad_scale,
            Update::Lars { options, .. } => options.grad_scale,
        }
    }

    /// Moves one weight along its gradient times `grad_scale`.
    ///
    /// # Errors
    /// As [`adamw_step`].
    pub fn apply(self, param: &Tensor, grad: &Tensor, grad_scale: f64) -> Result<()> {
        match self {
            Update::AdamW {
                exp_avg,
                exp_avg_sq,
                options,
            } => {
                let options = AdamW {
                    grad_scale,
                    ..options
                };
                adamw_step(param, grad, exp_avg, exp_avg_sq, options)
            }
            Update::Sgd {
                momentum_buffer,
                options,
            } => {
                let options = Sgd {
                    grad_scale,
                    ..options
                };
                sgd_step(param, grad, momentum_buffer, options)
            }
            Update::Lars { mu, options } => {
                let options = Lars {
                    grad_scale,
                    ..options
                };
                lars_step(param, grad, mu, options)
            }
        }
    }
}

/// Clips all gradients, moves all weights by one rule and the teacher after them:
/// `teacher ← momentum·teacher + (1 − momentum)·param`.
///
/// Nothing moves if the norm of the gradients is not finite, as [`norm_of_squares`] tells it, or if
/// `allowed`, `[1]` in f32 on the weights' device, is 0.
/// On a CUDA device these are three launches for any number of weights, with LARS five, and the
/// host waits for none of them; elsewhere [`adamw_step`], [`sgd_step`] or [`lars_step`] and [`ema`]
/// weight by weight.
///
/// # Shape
/// The result is `[2]`, f32: the norm of all gradients before clipping, and 1 if the step was done
/// or 0.
/// # Errors
/// If there is no weight, shapes differ, two tensors of a weight share a storage, a written one is
/// not contiguous, rule and constants are not the same for all weights, or `allowed` is no such
/// tensor.
pub fn whole_step(
    weights: &[StepWeight<'_>],
    clip: Clip,
    momentum: f64,
    allowed: Option<&Tensor>,
) -> Result<Tensor> {
    let Some(first) = weights.first() else {
        bail!("whole_step: no weights")
    };
    let mut updates = weights.iter().filter_map(|weight| weight.update);
    let constants = updates.clone().next().map(|update| update.constants());
    if !updates.all(|update| Some(update.constants()) == constants && update.grad_scale() == 1.0) {
        bail!("whole_step: the rule or its constants differ, or a gradient is scaled already");
    }
    for weight in weights {
        check("whole_step", &weight.tensors())?;
    }
    let device = first.param.device();
    if let Some(allowed) = allowed
        && (allowed.dims() != [1]
            || allowed.dtype() != DType::F32
            || !allowed.device().same_device(device))
    {
        bail!("whole_step: allowed is {allowed:?}, not [1] in f32 beside the weights");
    }
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return crate::cuda::ops::whole_step(weights, constants, clip, momentum, allowed);
    }
    let is_allowed = match allowed {
        None => true,
        Some(allowed) => allowed.to_vec1::<f32>()? != [0.0],
    };
    let mut squares = Vec::with_capacity(weights.len());
    for weight in weights {
        squares.push(weight.grad.map_or(Ok(0.0), sum_of_squares)?);
    }
    let norm = norm_of_squares(squares.iter().sum());
    let moves = norm.is_finite() && is_allowed;
    if moves {
        for (weight, square) in weights.iter().zip(squares) {
            if let (Some(grad), Some(update)) = (weight.grad, weight.update) {
                let grad_scale = match clip {
                    Clip::Nothing => 1.0,
                    Clip::Global(limit) => clip_factor(limit, norm),
                    Clip::Each(limit) => clip_factor(limit, square.sqrt()),
                };
                update.apply(weight.param, grad, grad_scale)?;
            }
            if let Some(teacher) = weight.teacher {
                ema(teacher, weight.param, momentum)?;
            }
        }
    }
    let figures = [norm as f32, f32::from(u8::from(moves))];
    Tensor::new(&figures, device)
}

/// What a gradient of this norm is multiplied by: `min(1, limit / (norm + 1e-6))`; a limit of 0 clips
/// nothing.
pub fn clip_factor(limit: f64, norm: f64) -> f64 {
    if limit > 0.0 {
        (limit / (norm + NORM_EPS)).min(1.0)
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;
    use candle_core::Device;

    const RULES: [Rule; 3] = [Rule::AdamW, Rule::Sgd, Rule::Lars];

    #[derive(Clone, Copy, Debug)]
    enum Rule {
        AdamW,
        Sgd,
        Lars,
    }

    const SGD: Sgd = Sgd {
        lr: 0.1,
        momentum: 0.9,
        weight_decay: 0.01,
        grad_scale: 1.0,
    };
    const LARS: Lars = Lars {
        lr: 2.0,
        momentum: 0.9,
        weight_decay: 0.1,
        eta: 0.5,
        grad_scale: 1.0,
    };

    fn tensor(seed: u64) -> Tensor {
        Tensor::from_vec(values(50, seed, 1.0), (5, 10), &Device::Cpu).unwrap()
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    /// Parameter, gradient, both moments (or buffer and nothing) and teacher.
    fn weight(rule: Rule, tensors: &[Tensor; 5]) -> StepWeight<'_> {
        let [param, grad, m, v, teacher] = tensors;
        StepWeight {
            param,
            grad: Some(grad),
            update: Some(match rule {
                Rule::AdamW => Update::AdamW {
                    exp_avg: m,
                    exp_avg_sq: v,
                    options: AdamW::default(),
                },
                Rule::Sgd => Update::Sgd {
                    momentum_buffer: m,
                    options: SGD,
                },
                Rule::Lars => Update::Lars {
                    mu: m,
                    options: LARS,
                },
            }),
            teacher: Some(teacher),
        }
    }

    fn tensors(seed: u64) -> [Tensor; 5] {
        let [param, grad, m, v, teacher] = [0, 1, 2, 3, 4].map(|i| tensor(seed + i));
        [param, grad, m, v.sqr().unwrap(), teacher]
    }

    #[test]
    fn a_norm_and_a_millionth_divide_the_limit() {
        // A norm just at the limit is clipped a little, as in both references.
        assert_eq!(clip_factor(3.0, 3.0), 3.0 / 3.000001);
        assert_eq!(clip_factor(3.0, 2.9), 1.0);
        assert_eq!(clip_factor(0.0, 2.9), 1.0);
    }

    #[test]
    fn a_step_is_clipping_the_rule_and_ema_one_after_the_other() {
        for rule in RULES {
            let (fused, one_by_one) = (tensors(1), tensors(1));
            let norm = sum_of_squares(&fused[1]).unwrap().sqrt();
            let figures =
                whole_step(&[weight(rule, &fused)], Clip::Global(1.0), 0.9, None).unwrap();
            assert_eq!(figures.to_vec1::<f32>().unwrap(), [norm as f32, 1.0]);
            let [param, grad, m, v, teacher] = &one_by_one;
            let grad_scale = 1.0 / (norm + 1e-6);
            match rule {
                Rule::AdamW => {
                    let options = AdamW {
                        grad_scale,
                        ..AdamW::default()
                    };
                    adamw_step(param, grad, m, v, options)
                }
                Rule::Sgd => sgd_step(param, grad, m, Sgd { grad_scale, ..SGD }),
                Rule::Lars => lars_step(param, grad, m, Lars { grad_scale, ..LARS }),
            }
            .unwrap();
            ema(teacher, param, 0.9).unwrap();
            assert_ne!(bits(param), bits(&tensor(1)), "{rule:?}");
            for (fused, one) in fused.iter().zip(&one_by_one) {
                assert_eq!(bits(fused), bits(one), "{rule:?}");
            }
        }
    }

    #[test]
    fn a_frozen_weight_counts_in_the_norm_and_moves_only_the_teacher() {
        for rule in RULES {
            let (frozen, free) = (tensors(1), tensors(20));
            let frozen_weight = StepWeight {
                update: None,
                ..weight(rule, &frozen)
            };
            let without_grad = StepWeight {
                grad: None,
                ..weight(rule, &free)
            };
            let before = bits(&free[2]);
            let weights = [frozen_weight, without_grad];
            let figures = whole_step(&weights, Clip::Each(1.0), 0.5, None).unwrap();
            let norm = sum_of_squares(&frozen[1]).unwrap().sqrt();
            assert_eq!(figures.to_vec1::<f32>().unwrap(), [norm as f32, 1.0]);
            assert_eq!(bits(&frozen[0]), bits(&tensor(1)));
            assert_eq!(bits(&free[2]), before);
            assert_ne!(bits(&frozen[4]), bits(&tensor(5)));
            assert_ne!(bits(&free[4]), bits(&tensor(24)));
        }
    }

    #[test]
    fn nothing_moves_without_a_finite_norm() {
        for rule in RULES {
            let mut bad = tensors(1);
            bad[1] = Tensor::full(f32::NAN, (5, 10), &Device::Cpu).unwrap();
            let good = tensors(20);
            let weights = [weight(rule, &good), weight(rule, &bad)];
            let figures = whole_step(&weights, Clip::Global(1.0), 0.5, None).unwrap();
            assert_eq!(figures.to_vec1::<f32>().unwrap()[1], 0.0);
            for (after, before) in good.iter().zip(&tensors(20)) {
                assert_eq!(bits(after), bits(before), "{rule:?}");
            }
        }
    }

    #[test]
    fn nothing_moves_if_a_square_is_more_than_an_f32_holds() {
        for rule in RULES {
            let mut large = tensors(1);
            large[1] = Tensor::full(6e20f32, (5, 10), &Device::Cpu).unwrap();
            let figures = whole_step(&[weight(rule, &large)], Clip::Nothing, 0.5, None).unwrap();
            assert_eq!(figures.to_vec1::<f32>().unwrap(), [f32::INFINITY, 0.0]);
            for i in [0, 2, 3, 4] {
                assert_eq!(bits(&large[i]), bits(&tensors(1)[i]), "{rule:?}");
            }
            // The largest gradient of one weight of this size that there is.
            large[1] = Tensor::full(2.6e18f32, (5, 10), &Device::Cpu).unwrap();
            let figures = whole_step(&[weight(rule, &large)], Clip::Nothing, 0.5, None).unwrap();
            assert_eq!(figures.to_vec1::<f32>().unwrap()[1], 1.0);
            for tensor in &large {
                let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(values.iter().all(|x| x.is_finite()), "{rule:?}");
            }
        }
    }

    #[test]
    fn nothing_moves_unless_it_is_allowed() {
        let flag = |value: f32| Tensor::new(&[value], &Device::Cpu).unwrap();
        for rule in RULES {
            let tensors = tensors(1);
            let step = |allowed: &Tensor| {
                let weights = [weight(rule, &tensors)];
                let figures = whole_step(&weights, Clip::Global(1.0), 0.5, Some(allowed));
                figures.map(|figures| figures.to_vec1::<f32>().unwrap())
            };
            let refused = [
                flag(1.0).get(0).unwrap(),
                Tensor::ones(2, DType::F32, &Device::Cpu).unwrap(),
                Tensor::ones(1, DType::U8, &Device::Cpu).unwrap(),
            ];
            for refused in refused {
                assert!(step(&refused).is_err());
            }
            let figures = step(&flag(0.0)).unwrap();
            assert!(figures[0] > 0.0 && figures[1] == 0.0, "{figures:?}");
            for (now, before) in tensors.iter().zip(&self::tensors(1)) {
                assert_eq!(bits(now), bits(before), "{rule:?}");
            }
            assert_eq!(step(&flag(1.0)).unwrap(), [figures[0], 1.0]);
            assert_ne!(bits(&tensors[0]), bits(&self::tensors(1)[0]), "{rule:?}");
        }
    }

    #[test]
    fn no_weights_mixed_rules_and_mixed_constants_are_errors() {
        assert!(whole_step(&[], Clip::Nothing, 0.9, None).is_err());
        let (a, b) = (tensors(1), tensors(20));
        let mixed = [weight(Rule::Sgd, &a), weight(Rule::Lars, &b)];
        assert!(whole_step(&mixed, Clip::Nothing, 0.9, None).is_err());
        let with = |options| StepWeight {
            update: Some(Update::Sgd {
                momentum_buffer: &b[2],
                options,
            }),
            ..weight(Rule::Sgd, &b)
        };
        for options in [
            Sgd {
                momentum: 0.8,
                ..SGD
            },
            Sgd {
                grad_scale: 0.5,
                ..SGD
            },
        ] {
            let weights = [weight(Rule::Sgd, &a), with(options)];
            assert!(whole_step(&weights, Clip::Nothing, 0.9, None).is_err());
        }
        for (now, before) in a.iter().zip(&tensors(1)) {
            assert_eq!(bits(now), bits(before));
        }
        // Rate and decay may differ.
        let options = Sgd {
            lr: 0.2,
            weight_decay: 0.0,
            ..SGD
        };
        whole_step(
            &[weight(Rule::Sgd, &a), with(options)],
            Clip::Nothing,
            0.9,
            None,
        )
        .unwrap();
    }
}
