//! Named parameters: what a model declares, what a store holds, how layers find theirs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Result, Shape, Tensor, Var};

use crate::error::{ModelError, WeightMismatch};
use crate::init::Init;

/// What a named tensor is to training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamKind {
    /// Changed by the optimizer.
    Trainable,
    /// A weight that gets no gradient, such as a frozen `weight_g`.
    Frozen,
    /// State that the forward pass keeps, such as running means.
    Buffer,
}

/// One tensor of a model, before it has values.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSpec {
    /// Full name, e.g. `backbone.blocks.0.attn.qkv.weight`.
    pub name: String,
    /// Shape.
    pub shape: Shape,
    /// What it is to training.
    pub kind: ParamKind,
    /// Where its first values come from.
    pub init: Init,
    /// Element type; everything but `num_batches_tracked` is f32.
    pub dtype: DType,
}

/// Whether layers record a graph for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradients {
    /// The weights are variables: a backward pass finds them.
    Recorded,
    /// The weights are detached views on the same storage: no graph, but `Var::set` and in-place
    /// updates are seen.
    Off,
}

/// The named tensors of one network, in the order of their names.
///
/// Cloning shares the storage; [`ParamStore::copy`] does not.
#[derive(Debug, Clone)]
pub struct ParamStore {
    weights: BTreeMap<String, Var>,
    buffers: BTreeMap<String, Var>,
    frozen: BTreeSet<String>,
}

impl ParamStore {
    /// Draws first values for `specs`; a pure function of the specs and the seed.
    ///
    /// # Errors
    /// [`candle_core::Error`] if the device cannot hold them.
    pub fn draw(specs: &[ParamSpec], seed: u64, device: &Device) -> Result<Self> {
        let mut store = ParamStore {
            weights: BTreeMap::new(),
            buffers: BTreeMap::new(),
            frozen: BTreeSet::new(),
        };
        for spec in specs {
            let values = spec.init.draw(spec.shape.elem_count(), seed, &spec.name);
            let tensor = Tensor::from_vec(values, spec.shape.clone(), &Device::Cpu)?;
            let tensor = tensor.to_dtype(spec.dtype)?.to_device(device)?;
            let var = Var::from_tensor(&tensor)?;
            match spec.kind {
                ParamKind::Buffer => store.buffers.insert(spec.name.clone(), var),
                ParamKind::Trainable => store.weights.insert(spec.name.clone(), var),
                ParamKind::Frozen => {
                    store.frozen.insert(spec.name.clone());
                    store.weights.insert(spec.name.clone(), var)
                }
            };
        }
        Ok(store)
    }

    /// All parameters, frozen ones included: what the moving average and checkpoints walk.
    pub fn weights(&self) -> &BTreeMap<String, Var> {
        &self.weights
    }

    /// The parameters that get a gradient.
    pub fn trainable(&self) -> BTreeMap<String, Var> {
        let kept = self
            .weights
            .iter()
            .filter(|(name, _)| !self.frozen.contains(*name));
        kept.map(|(name, var)| (name.clone(), var.clone()))
            .collect()
    }

    /// Batch norm's `running_mean`, `running_var` (f32) and `num_batches_tracked` (i64 scalar).
    pub fn buffers(&self) -> &BTreeMap<String, Var> {
        &self.buffers
    }

    /// Weights and buffers as detached tensors that share storage with the variables.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let all = self.weights.iter().chain(&self.buffers);
        all.map(|(name, var)| (name.clone(), var.as_detached_tensor()))
            .collect()
    }

    /// Number of trainable values.
    pub fn num_trainable(&self) -> usize {
        self.trainable().values().map(|var| var.elem_count()).sum()
    }

    /// The device of the tensors.
    pub fn device(&self) -> Device {
        self.weights
            .values()
            .next()
            .map_or(Device::Cpu, |var| var.device().clone())
    }

    /// A deep copy: same names and values, storage of its own.
    ///
    /// # Errors
    /// [`candle_core::Error`] if the device cannot hold it.
    pub fn copy(&self) -> Result<Self> {
        let copy = |vars: &BTreeMap<String, Var>| -> Result<BTreeMap<String, Var>> {
            vars.iter()
                .map(|(name, var)| Ok((name.clone(), Var::from_tensor(&var.detach().copy()?)?)))
                .collect()
        };
        Ok(Self {
            weights: copy(&self.weights)?,
            buffers: copy(&self.buffers)?,
            frozen: self.frozen.clone(),
        })
    }

    /// Overwrites every tensor by the one of the same name, in place.
    ///
    /// Nothing is changed unless everything fits. Only `num_batches_tracked` may be missing.
    /// # Errors
    /// [`ModelError::Weights`] with every missing, surplus and misshapen name;
    /// [`ModelError::Integers`] with those of integers in the place of floats.
    pub fn load(&self, tensors: &BTreeMap<String, Tensor>) -> std::result::Result<(), ModelError> {
        self.load_part(tensors, "")
    }

    /// As [`ParamStore::load`], for the names that start with `prefix` (e.g. `backbone.`) only.
    ///
    /// Neither the store's other tensors nor those of `tensors` are looked at.
    /// # Errors
    /// As [`ParamStore::load`], of the names under the prefix.
    pub fn load_part(
        &self,
        tensors: &BTreeMap<String, Tensor>,
        prefix: &str,
    ) -> std::result::Result<(), ModelError> {
        let own = self.weights.iter().chain(&self.buffers);
        let own: BTreeMap<_, _> = own.filter(|(name, _)| name.starts_with(prefix)).collect();
        let shapes = own.iter().map(|(name, var)| (name.as_str(), var.dims()));
        check_shapes(&shapes.collect(), tensors, prefix)?;
        let is_cut = |(name, var): &(&String, &Var)| {
            let given = tensors.get(*name);
            var.dtype().is_float() && given.is_some_and(|given| !given.dtype().is_float())
        };
        let integers = own.iter().map(|(name, var)| (*name, *var)).filter(is_cut);
        let integers: Vec<String> = integers.map(|(name, _)| name.clone()).collect();
        if !integers.is_empty() {
            return Err(ModelError::Integers(integers));
        }
        for (name, var) in own {
            if let Some(tensor) = tensors.get(name) {
                let tensor = tensor.to_dtype(var.dtype())?.to_device(var.device())?;
                // A copy, so that a store may be loaded from its own tensors.
                var.set(&tensor.contiguous()?.copy()?)?;
            }
        }
        Ok(())
    }

    /// How the store differs from `specs`, looking only at names that start with `prefix`.
    pub(crate) fn compare(&self, specs: &[ParamSpec], prefix: &str) -> WeightMismatch {
        let wanted = specs.iter();
        let wanted = wanted.map(|spec| (spec.name.as_str(), spec.shape.dims()));
        let own = self.weights.iter().chain(&self.buffers);
        let own = own.map(|(name, var)| (name.as_str(), var.dims()));
        mismatch(&wanted.collect(), &own.collect(), prefix)
    }
}

/// Refuses tensors under `prefix` that are not those of `shapes`, by name and shape. Only
/// `num_batches_tracked` may be missing.
///
/// # Errors
/// [`ModelError::Weights`] with every missing, surplus and misshapen name.
pub(crate) fn check_shapes(
    shapes: &Shapes<'_>,
    tensors: &BTreeMap<String, Tensor>,
    prefix: &str,
) -> std::result::Result<(), ModelError> {
    let given = tensors.iter();
    let given = given.map(|(name, tensor)| (name.as_str(), tensor.dims()));
    let mut mismatch = mismatch(shapes, &given.collect(), prefix);
    let is_needed = |name: &String| !name.ends_with(".num_batches_tracked");
    mismatch.missing.retain(is_needed);
    match mismatch.is_empty() {
        true => Ok(()),
        false => Err(ModelError::Weights(mismatch)),
    }
}

/// Shapes by name.
type Shapes<'a> = BTreeMap<&'a str, &'a [usize]>;

/// How the shapes `given` differ from those `wanted`; what else is given counts if its name starts
/// with `prefix`.
fn mismatch(wanted: &Shapes<'_>, given: &Shapes<'_>, prefix: &str) -> WeightMismatch {
    let mut mismatch = WeightMismatch::default();
    for (name, shape) in wanted {
        let name = (*name).to_owned();
        match given.get(name.as_str()) {
            None => mismatch.missing.push(name),
            Some(found) if found != shape => {
                mismatch
                    .misshapen
                    .push((name, shape.to_vec(), found.to_vec()));
            }
            Some(_) => {}
        }
    }
    let surplus = given.keys().filter(|name| name.starts_with(prefix));
    mismatch.surplus = surplus
        .filter(|name| !wanted.contains_key(*name))
        .map(|name| (*name).to_owned())
        .collect();
    mismatch
}

/// Where a layer's tensors come from: the one place in which names, shapes and first values of a
/// layer are written down.
///
/// The same constructor runs twice: once to declare what it needs, once to be given it.
#[derive(Clone)]
pub(crate) struct ParamBuilder<'a> {
    source: Source<'a>,
    prefix: String,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    Declared(&'a RefCell<Vec<ParamSpec>>),
    Store(&'a ParamStore, Gradients),
}

impl<'a> ParamBuilder<'a> {
    /// Collects the specs that `build` asks for; what it builds has shapes but no values.
    pub(crate) fn declare<T>(
        build: impl FnOnce(ParamBuilder<'_>) -> Result<T>,
    ) -> Result<(T, Vec<ParamSpec>)> {
        let specs = RefCell::new(Vec::new());
        let built = build(ParamBuilder {
            source: Source::Declared(&specs),
            prefix: String::new(),
        })?;
        let mut specs = specs.into_inner();
        specs.sort_by(|a: &ParamSpec, b| a.name.cmp(&b.name));
        Ok((built, specs))
    }

    /// Hands out the tensors of `store`.
    pub(crate) fn from_store(store: &'a ParamStore, gradients: Gradients) -> Self {
        Self {
            source: Source::Store(store, gradients),
            prefix: String::new(),
        }
    }

    /// The builder of a part called `name`.
    pub(crate) fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self {
            source: self.source,
            prefix: self.full_name(&name.to_string()),
        }
    }

    /// A trainable parameter.
    pub(crate) fn weight(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Tensor> {
        self.get(name, shape.into(), init, ParamKind::Trainable)
    }

    /// A parameter without a gradient.
    pub(crate) fn frozen(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Tensor> {
        self.get(name, shape.into(), init, ParamKind::Frozen)
    }

    fn get(&self, name: &str, shape: Shape, init: Init, kind: ParamKind) -> Result<Tensor> {
        let name = self.full_name(name);
        match self.source {
            Source::Declared(specs) => {
                let stand_in = Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(&shape)?;
                specs.borrow_mut().push(ParamSpec {
                    name,
                    shape,
                    kind,
                    init,
                    dtype: DType::F32,
                });
                Ok(stand_in)
            }
            Source::Store(store, gradients) => {
                let var = lookup(&store.weights, &name)?;
                match (gradients, kind) {
                    (Gradients::Recorded, ParamKind::Trainable) => Ok(var.as_tensor().clone()),
                    _ => Ok(var.as_detached_tensor()),
                }
            }
        }
    }

    /// State that the layer itself updates.
    pub(crate) fn buffer(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        init: Init,
        dtype: DType,
    ) -> Result<Var> {
        let (name, shape) = (self.full_name(name), shape.into());
        match self.source {
            Source::Declared(specs) => {
                let stand_in = Var::zeros(shape.clone(), dtype, &Device::Cpu)?;
                specs.borrow_mut().push(ParamSpec {
                    name,
                    shape,
                    kind: ParamKind::Buffer,
                    init,
                    dtype,
                });
                Ok(stand_in)
            }
            Source::Store(store, _) => lookup(&store.buffers, &name).cloned(),
        }
    }

    fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }
}

fn lookup<'v>(vars: &'v BTreeMap<String, Var>, name: &str) -> Result<&'v Var> {
    vars.get(name)
        .ok_or_else(|| candle_core::Error::Msg(format!("no parameter named {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> ParamStore {
        let specs = ParamBuilder::declare(|params| {
            let layer = params.pp("layer");
            layer.weight("weight", (2, 3), Init::Normal { std: 1.0 })?;
            layer.frozen("g", 2, Init::ONES)?;
            layer.buffer("running_mean", 2, Init::ZEROS, DType::F32)?;
            layer.buffer("num_batches_tracked", (), Init::ZEROS, DType::I64)
        });
        ParamStore::draw(&specs.unwrap().1, 1, &Device::Cpu).unwrap()
    }

    #[test]
    fn weights_buffers_and_frozen_ones_are_kept_apart() {
        let store = store();
        assert_eq!(
            store.weights().keys().collect::<Vec<_>>(),
            ["layer.g", "layer.weight"]
        );
        assert_eq!(
            store.trainable().keys().collect::<Vec<_>>(),
            ["layer.weight"]
        );
        assert_eq!(store.buffers().len(), 2);
        assert_eq!(store.tensors().len(), 4);
        assert_eq!(store.num_trainable(), 6);
    }

    #[test]
    fn loading_lists_every_misfit_and_then_changes_nothing() {
        let store = store();
        let before = store.tensors()["layer.g"].to_vec1::<f32>().unwrap();
        let mut tensors = store.copy().unwrap().tensors();
        tensors.remove("layer.running_mean");
        tensors.insert(
            "layer.extra".into(),
            Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap(),
        );
        let wrong = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
        tensors.insert("layer.weight".into(), wrong);
        tensors.insert(
            "layer.g".into(),
            Tensor::new(&[5f32, 5.0], &Device::Cpu).unwrap(),
        );
        let text = store.load(&tensors).unwrap_err().to_string();
        assert!(text.contains("missing: layer.running_mean"), "{text}");
        assert!(text.contains("not in the model: layer.extra"), "{text}");
        assert!(text.contains("layer.weight: the model has shape [2, 3], the weights [3, 2]"));
        assert_eq!(store.tensors()["layer.g"].to_vec1::<f32>().unwrap(), before);
    }

    #[test]
    fn integers_are_no_weights() {
        let store = store();
        let mut tensors = store.copy().unwrap().tensors();
        let bytes = Tensor::ones((2, 3), DType::U8, &Device::Cpu).unwrap();
        tensors.insert("layer.weight".into(), bytes);
        let text = store.load(&tensors).unwrap_err().to_string();
        assert!(text.ends_with("integers: layer.weight"), "{text}");
    }

    #[test]
    fn loading_replaces_values_and_tolerates_a_missing_batch_count() {
        let store = store();
        let mut tensors = store.copy().unwrap().tensors();
        tensors.remove("layer.num_batches_tracked");
        tensors.insert(
            "layer.g".into(),
            Tensor::new(&[5f32, 6.0], &Device::Cpu).unwrap(),
        );
        store.load(&tensors).unwrap();
        assert_eq!(
            store.tensors()["layer.g"].to_vec1::<f32>().unwrap(),
            [5.0, 6.0]
        );
    }

    #[test]
    fn a_store_can_be_loaded_from_its_own_tensors() {
        let store = store();
        store.load(&store.tensors()).unwrap();
    }

    #[test]
    fn a_copy_has_storage_of_its_own() {
        let store = store();
        let copy = store.copy().unwrap();
        store.weights()["layer.g"]
            .set(&Tensor::new(&[9f32, 9.0], &Device::Cpu).unwrap())
            .unwrap();
        assert_eq!(
            copy.tensors()["layer.g"].to_vec1::<f32>().unwrap(),
            [1.0, 1.0]
        );
        assert_eq!(
            store.tensors()["layer.g"].to_vec1::<f32>().unwrap(),
            [9.0, 9.0]
        );
    }
}
