//! Everything that follows the gradients of a step, in one go and without a look at any number.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var, bail};
use selfsame_kernels::multi_tensor::{Clip, StepWeight, whole_step};

use crate::clip::check_limit;
use crate::optimizer::check_rates;
use crate::{ClipMode, Grads, Optimizer};

/// What [`Optimizer::whole_step`] does with the gradients.
#[derive(Debug, Clone, Copy)]
pub struct WholeStep<'a> {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay of the decayed group.
    pub weight_decay: f64,
    /// Limit on the gradient's norm; 0 clips nothing.
    pub max_norm: f64,
    /// What the limit is about.
    pub clip_mode: ClipMode,
    /// Weights whose names begin so count in the norm and stay as they are.
    pub frozen: Option<&'a str>,
    /// The teacher's weights, by the student's names.
    pub teacher: &'a BTreeMap<String, Var>,
    /// Share of itself that the teacher keeps.
    pub momentum: f64,
    /// `[1]` in f32 beside the weights: 0 where nothing may move, for example because the loss is
    /// not finite.
    pub allowed: Option<&'a Tensor>,
}

impl Optimizer {
    /// [`Grads::clip`], [`Optimizer::step`] and the momentum teacher's update, all without the host
    /// waiting for the device.
    ///
    /// `weights` are all of the student's, those without a gradient too: the teacher follows them.
    /// If the norm of the gradients is not finite or the step is not allowed, no weight, moment or
    /// average moves. The count of steps that AdamW's bias correction uses goes up all the same, for
    /// the host does not know: who finds out says [`Optimizer::take_back_step`].
    ///
    /// # Shape
    /// The result is `[2]`, f32: the norm of all gradients before clipping, and 1 if the step was
    /// done, else 0.
    /// # Errors
    /// [`candle_core::Error`] that lists every gradient that does not fit its weight or was scaled
    /// and every weight that the teacher lacks, or tells a learning rate or decay that is negative or
    /// not finite, a limit that is NaN or negative or a momentum that is no share; in that case
    /// nothing was changed.
    pub fn whole_step(
        &mut self,
        weights: &BTreeMap<String, Var>,
        grads: &Grads,
        step: &WholeStep<'_>,
    ) -> Result<Tensor> {
        check_rates(step.lr, step.weight_decay)?;
        check_limit(step.max_norm)?;
        if !(0.0..=1.0).contains(&step.momentum) {
            bail!(
                "the teacher's momentum {} is not between 0 and 1",
                step.momentum
            );
        }
        let mut problems = self.misfits(weights, grads);
        for (name, weight) in weights {
            match step.teacher.get(name) {
                None => problems.push(format!("{name} is not in the teacher")),
                Some(average) if average.dims() != weight.dims() => {
                    problems.push(format!("{name} is {:?} in the teacher", average.dims()))
                }
                Some(_) => {}
            }
        }
        let scaled = grads
            .entries()
            .iter()
            .filter(|(_, grad)| grad.factor != 1.0);
        problems.extend(scaled.map(|(name, _)| format!("the gradient of {name} is scaled")));
        if !problems.is_empty() {
            bail!("a step cannot be done: {}", problems.join("; "));
        }
        let Self { rule, specs, begun } = self;
        let is_frozen = |name: &str| step.frozen.is_some_and(|prefix| name.starts_with(prefix));
        let moving = grads.entries().keys().filter(|name| !is_frozen(name));
        begun.clear();
        for name in moving {
            begun.push((name.clone(), rule.begin_update(name, &weights[name])?));
        }
        let parts: Vec<StepWeight<'_>> = weights
            .iter()
            .map(|(name, weight)| {
                let grad = grads.entries().get(name).map(|grad| &grad.tensor);
                let decay = match specs.get(name) {
                    Some(spec) if spec.decayed => step.weight_decay,
                    _ => 0.0,
                };
                let moves = grad.is_some() && !is_frozen(name);
                StepWeight {
                    param: weight,
                    grad,
                    update: match moves {
                        true => rule.begun(name, step.lr, decay),
                        false => None,
                    },
                    teacher: Some(&step.teacher[name]),
                }
            })
            .collect();
        let clip = match step.clip_mode {
            ClipMode::Global => Clip::Global(step.max_norm),
            ClipMode::PerParameter => Clip::Each(step.max_norm),
        };
        whole_step(&parts, clip, step.momentum, step.allowed)
    }

    /// Forgets the newest [`Optimizer::whole_step`], which the device turned out not to have done.
    /// Nothing happens the second time, or if another kind of step came after it.
    pub fn take_back_step(&mut self) {
        for (name, made_state) in self.begun.drain(..) {
            self.rule.take_back_update(&name, made_state);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{Decayed, OptimizerKind};

    const KINDS: [OptimizerKind; 3] = [
        OptimizerKind::AdamW,
        OptimizerKind::Sgd,
        OptimizerKind::Lars,
    ];

    fn vars(seed: f32) -> BTreeMap<String, Var> {
        let value = |i: usize| (i as f32 * 0.37 + seed).sin();
        ["a.weight", "b.bias", "head.last_layer.weight", "still"]
            .into_iter()
            .enumerate()
            .map(|(i, name)| {
                let values: Vec<f32> = (0..6).map(|j| value(6 * i + j)).collect();
                let shape = if name.ends_with("bias") {
                    vec![6]
                } else {
                    vec![2, 3]
                };
                let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
                (name.to_owned(), Var::from_tensor(&tensor).unwrap())
            })
            .collect()
    }

    fn grads(weights: &BTreeMap<String, Var>, factor: f64) -> Grads {
        let with_gradient = weights.iter().filter(|(name, _)| *name != "still");
        Grads::new(
            with_gradient
                .map(|(name, weight)| (name.clone(), (weight.as_tensor() * factor).unwrap()))
                .collect(),
        )
    }

    fn bits(weights: &BTreeMap<String, Var>) -> Vec<u32> {
        let all = weights.values().flat_map(|weight| {
            let values = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(f32::to_bits)
        });
        all.collect()
    }

    fn step(teacher: &BTreeMap<String, Var>, mode: ClipMode) -> WholeStep<'_> {
        WholeStep {
            lr: 0.1,
            weight_decay: 0.4,
            max_norm: 1.0,
            clip_mode: mode,
            frozen: Some("head.last_layer"),
            teacher,
            momentum: 0.9,
            allowed: None,
        }
    }

    #[test]
    fn a_whole_step_is_clipping_freezing_updating_and_averaging() {
        for mode in [ClipMode::Global, ClipMode::PerParameter] {
            for kind in KINDS {
                whole_steps_have_the_bits_of_their_parts(kind, mode);
            }
        }
    }

    fn whole_steps_have_the_bits_of_their_parts(kind: OptimizerKind, mode: ClipMode) {
        let (whole, parts) = (vars(0.0), vars(0.0));
        let (whole_teacher, parts_teacher) = (vars(5.0), vars(5.0));
        let trainable = |weights: &BTreeMap<String, Var>| {
            let mut weights = weights.clone();
            weights.remove("still");
            weights
        };
        let new = |weights| Optimizer::new(kind, &trainable(weights), Decayed::WeightsOnly);
        let (mut one, mut other) = (new(&whole).unwrap(), new(&parts).unwrap());
        for factor in [3.0, 0.01, 7.0] {
            let gradients = grads(&whole, factor);
            let before = bits(&whole);
            let figures = one
                .whole_step(&whole, &gradients, &step(&whole_teacher, mode))
                .unwrap();

            let mut gradients = grads(&parts, factor);
            let norm = gradients.clip(1.0, mode).unwrap();
            gradients.drop_prefix("head.last_layer");
            other
                .step(&trainable(&parts), &gradients, 0.1, 0.4)
                .unwrap();
            for (name, average) in &parts_teacher {
                selfsame_kernels::multi_tensor::ema(average, &parts[name], 0.9).unwrap();
            }
            assert_eq!(figures.to_vec1::<f32>().unwrap(), [norm as f32, 1.0]);
            assert_ne!(bits(&whole), before, "{kind:?}, {mode:?}");
            assert_eq!(bits(&whole), bits(&parts), "{kind:?}, {mode:?}");
            assert_eq!(
                bits(&whole_teacher),
                bits(&parts_teacher),
                "{kind:?}, {mode:?}"
            );
        }
        let (one, other) = (one.state().unwrap(), other.state().unwrap());
        assert!(one.keys().eq(other.keys()));
        assert!(!one.is_empty() && !one.keys().any(|name| name.contains("last_layer")));
        for (name, state) in &one {
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(state), values(&other[name]), "{name}");
        }
    }

    #[test]
    fn what_does_not_fit_is_listed_and_nothing_moves() {
        let (weights, mut teacher) = (vars(0.0), vars(5.0));
        teacher.remove("still");
        let mut optimizer =
            Optimizer::new(OptimizerKind::AdamW, &weights, Decayed::WeightsOnly).unwrap();
        let before = bits(&weights);
        let error = optimizer
            .whole_step(
                &weights,
                &grads(&weights, 1.0),
                &step(&teacher, ClipMode::Global),
            )
            .unwrap_err();
        assert!(error.to_string().contains("still is not in the teacher"));
        let mut scaled = grads(&weights, 50.0);
        scaled.clip(1.0, ClipMode::Global).unwrap();
        let teacher = vars(5.0);
        let error = optimizer
            .whole_step(&weights, &scaled, &step(&teacher, ClipMode::Global))
            .unwrap_err();
        assert!(error.to_string().contains("a.weight is scaled"), "{error}");
        assert_eq!(bits(&weights), before);
        assert!(optimizer.state().unwrap().is_empty());
    }

    #[test]
    fn numbers_that_cannot_be_applied_are_refused_and_nothing_moves() {
        let (weights, teacher) = (vars(0.0), vars(5.0));
        let mut optimizer =
            Optimizer::new(OptimizerKind::AdamW, &weights, Decayed::WeightsOnly).unwrap();
        let good = step(&teacher, ClipMode::Global);
        for bad in [f64::NAN, -1.0] {
            let all = [
                WholeStep { lr: bad, ..good },
                WholeStep {
                    weight_decay: bad,
                    ..good
                },
                WholeStep {
                    max_norm: bad,
                    ..good
                },
                WholeStep {
                    momentum: bad,
                    ..good
                },
            ];
            for step in all {
                let grads = grads(&weights, 1.0);
                assert!(optimizer.whole_step(&weights, &grads, &step).is_err());
            }
        }
        assert_eq!(bits(&weights), bits(&vars(0.0)));
        assert_eq!(bits(&teacher), bits(&vars(5.0)));
        assert!(optimizer.state().unwrap().is_empty());
    }

    #[test]
    fn nothing_but_the_count_moves_without_a_finite_norm() {
        for kind in KINDS {
            let (weights, teacher) = (vars(0.0), vars(5.0));
            let mut optimizer = Optimizer::new(kind, &weights, Decayed::WeightsOnly).unwrap();
            let gradients = grads(&weights, f64::NAN);
            let figures = optimizer
                .whole_step(&weights, &gradients, &step(&teacher, ClipMode::Global))
                .unwrap();
            assert_eq!(figures.to_vec1::<f32>().unwrap()[1], 0.0);
            assert_eq!(bits(&weights), bits(&vars(0.0)));
            assert_eq!(bits(&teacher), bits(&vars(5.0)));
            let state = optimizer.state().unwrap();
            let moments = state.iter().filter(|(name, _)| !name.starts_with("step."));
            for (name, moment) in moments {
                let moment = moment.flatten_all().unwrap();
                assert_eq!(moment.to_vec1::<f32>().unwrap(), [0.0; 6], "{name}");
            }
        }
    }

    #[test]
    fn a_step_that_was_not_done_is_taken_back_to_the_last_bit() {
        let state = |optimizer: &Optimizer| {
            let state = optimizer.state().unwrap().into_iter();
            let values = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            state
                .map(|(name, tensor)| (name, values(tensor)))
                .collect::<BTreeMap<_, _>>()
        };
        for (kind, last_layer_joins) in KINDS.into_iter().flat_map(|k| [(k, false), (k, true)]) {
            let (weights, teacher) = (vars(0.0), vars(5.0));
            let mut optimizer = Optimizer::new(kind, &weights, Decayed::WeightsOnly).unwrap();
            let good = step(&teacher, ClipMode::Global);
            let not_allowed = Tensor::new(&[0f32], &Device::Cpu).unwrap();
            // One before anything is known of any weight, one after: of the last layer's, where it
            // was frozen until then, not even then.
            for steps_before in [0, 1] {
                for _ in 0..steps_before {
                    optimizer
                        .whole_step(&weights, &grads(&weights, 0.5), &good)
                        .unwrap();
                }
                let before = (bits(&weights), bits(&teacher), state(&optimizer));
                let bad = WholeStep {
                    allowed: Some(&not_allowed),
                    frozen: if last_layer_joins { None } else { good.frozen },
                    ..good
                };
                let figures = optimizer
                    .whole_step(&weights, &grads(&weights, 2.0), &bad)
                    .unwrap();
                assert_eq!(figures.to_vec1::<f32>().unwrap()[1], 0.0);
                optimizer.take_back_step();
                let after = (bits(&weights), bits(&teacher), state(&optimizer));
                assert_eq!(after, before, "{kind:?} after {steps_before} steps");
            }
        }
    }
}
