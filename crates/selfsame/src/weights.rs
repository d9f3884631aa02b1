//! `--weights`: a run, a file or a baseline, opened as something that turns pictures into features.

mod arch;
mod hub;
mod kind;
mod loaded;
mod misfit;
mod told;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use candle_core::{Device, Tensor};
use selfsame_checkpoint::CHECKPOINTS;
use selfsame_data::EvalTransform;
use selfsame_data::augment::EvalCrop;
use selfsame_models::interop::{Difference, Layout, fit_patches, fit_positions, is_pth};
use selfsame_models::{
    InputConfig, ModelConfig, ModelError, NamedArch, ParamStore, build_backbone, check_backbone,
    draw_backbone, infer_model, read_weights, reference_backbone,
};
use selfsame_train::{EVAL_BATCH, EmbedOptions, Extractor};

use crate::cli::{WeightsArgs, Which};
use crate::exit::{usage, usage_of};
use crate::run_dir;
use crate::stderr::tell;
use arch::asked;
use kind::refuse_other_kinds;
pub(crate) use loaded::Loaded;
use told::told;

/// Side in pixels of the `pixels` baseline.
const PIXELS_SIZE: usize = 64;

/// Before weights that candle-transformers is to run.
const REFERENCE: &str = "reference:";

/// Before the name of a hub's repository.
const HUB: &str = "hf:";

/// A fine-tuned backbone with its classifier, in the folder that `finetune` made.
pub(crate) const FINETUNED: &str = "finetuned.safetensors";
/// Everything that `finetune --json` prints, and what it was made by: the last that it writes.
pub(crate) const RESULT_FILE: &str = "result.json";

/// Where features come from.
pub(crate) enum Weights {
    /// The pixels themselves.
    Pixels,
    /// A frozen backbone.
    Backbone(Box<Loaded>),
}

impl Weights {
    /// Opens what `spec` names, for use.
    ///
    /// # Errors
    /// As [`Weights::read`]; if a value is not finite, with the first tensor that has one.
    pub(crate) fn open(
        spec: &str,
        which: Which,
        arch: Option<&str>,
        device: &Device,
    ) -> anyhow::Result<Self> {
        Self::read(spec, which, arch, device)?.finite(spec)
    }

    /// Opens a run or a file for use, wherever it lies: what is no UTF-8 has no specification.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub(crate) fn open_at(
        path: &Path,
        which: Which,
        arch: Option<&str>,
        device: &Device,
    ) -> anyhow::Result<Self> {
        Self::read_at(path, which, arch, device)?.finite(&path.to_string_lossy())
    }

    /// The same weights, if every value is finite.
    fn finite(self, spec: &str) -> anyhow::Result<Self> {
        if let Self::Backbone(loaded) = &self
            && let [first, others @ ..] = loaded.not_finite()?.as_slice()
        {
            let others = match others.len() {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            anyhow::bail!(
                "weights {spec}: {first}{others} has values that are not finite: nothing comes of \
                 such a network"
            );
        }
        Ok(self)
    }

    /// Opens what `spec` names, whatever its values are.
    ///
    /// # Errors
    /// A usage error if there is no such thing; the models' list of names that do not fit.
    pub(crate) fn read(
        spec: &str,
        which: Which,
        arch: Option<&str>,
        device: &Device,
    ) -> anyhow::Result<Self> {
        let drawn = spec.strip_prefix("random:");
        if let Some(arch) = arch
            && Self::is_baseline(spec)
        {
            return Err(usage(format!(
                "--arch {arch}: {spec} takes none; random:ARCH/PATCH@SIZE says its own"
            )));
        }
        if spec == "pixels" {
            return Ok(Self::Pixels);
        }
        if let Some(inner) = spec.strip_prefix(REFERENCE) {
            return by_reference(inner, which, arch, device)
                .with_context(|| format!("reading weights from {spec}"));
        }
        if let Some(name) = spec.strip_prefix(HUB) {
            return Self::read_at(&hub::file(name)?, which, arch, device);
        }
        match drawn {
            Some(text) => Ok(Self::Backbone(Box::new(random(text, device)?))),
            None => Self::read_at(Path::new(spec), which, arch, device),
        }
    }

    /// Opens a run, a folder or a file, whatever its values are.
    fn read_at(
        path: &Path,
        which: Which,
        arch: Option<&str>,
        device: &Device,
    ) -> anyhow::Result<Self> {
        let loaded = if let Some(file) = file_in_folder(path, which) {
            of_file(&file, which, arch, device)
        } else if path.is_dir() {
            of_run(path, which, arch, device)
        } else if path.exists() {
            of_file(path, which, arch, device)
        } else {
            let spec = path.display();
            return Err(usage_of(
                "--weights",
                format!(
                    "{spec}: no such run, file, folder or baseline (pixels, random:vit_small/16@128)"
                ),
            ));
        };
        let loaded = loaded.with_context(|| format!("reading weights from {}", path.display()))?;
        Ok(Self::Backbone(Box::new(loaded)))
    }

    /// Whether `spec` is a baseline and no file.
    pub(crate) fn is_baseline(spec: &str) -> bool {
        spec == "pixels" || spec.starts_with("random:")
    }

    /// Makes the backbone that of `model`: position embeddings are resampled, all else must fit.
    ///
    /// # Errors
    /// A usage error for `pixels`, without the flag they came by; every name that does not fit.
    pub(crate) fn fit_to(&mut self, model: &ModelConfig, device: &Device) -> anyhow::Result<()> {
        let Self::Backbone(from) = self else {
            return Err(usage("this command needs a backbone"));
        };
        let dims = [&from.model, model].map(ModelConfig::vit_dims);
        if let [Some(theirs), Some(ours)] = dims
            && theirs.embed_dim == ours.embed_dim
            && theirs.num_heads != ours.num_heads
        {
            let (theirs, ours) = (theirs.num_heads, ours.num_heads);
            return Err(usage(format!(
                "the weights are of a network with {theirs} attention heads, model.num_heads says \
                 {ours}: the shapes are the same, the features are not"
            )));
        }
        let mut tensors = from.params.tensors();
        resample_aloud(&mut tensors, model)?;
        let misfit = |error| {
            let of_ours = misfit::in_words(error, model);
            usage(format!(
                "they are of {}; {of_ours}",
                describe_model(&from.model)
            ))
        };
        let params = fitted(&tensors, model, device, misfit)?;
        if let Self::Backbone(loaded) = self {
            loaded.backbone = build_backbone(model, &params)?;
            loaded.model = model.clone();
            loaded.params = params;
        }
        Ok(())
    }

    /// What turns prepared pictures into features.
    pub(crate) fn extractor(&self) -> Extractor<'_> {
        match self {
            Self::Pixels => Extractor::Pixels,
            Self::Backbone(loaded) => Extractor::Backbone(loaded.backbone.as_ref()),
        }
    }

    /// Side of the evaluated crop: as asked for, else as trained, else 64 for pixels.
    pub(crate) fn image_size(&self, asked: Option<usize>) -> usize {
        asked.unwrap_or(match self {
            Self::Pixels => PIXELS_SIZE,
            Self::Backbone(loaded) => loaded.input.image_size,
        })
    }

    /// The evaluation transform that the flags ask for.
    ///
    /// # Errors
    /// A usage error for an unknown filter, or a size that the patch does not divide.
    pub(crate) fn eval_crop(&self, args: &WeightsArgs) -> anyhow::Result<EvalCrop> {
        let image_size = self.image_size(args.image_size);
        let (mean, std) = match self {
            Self::Pixels => ([0.0; 3], [1.0; 3]),
            Self::Backbone(loaded) => (loaded.input.mean, loaded.input.std),
        };
        if let Self::Backbone(loaded) = self {
            let patch = loaded.model.patch_size;
            if loaded.model.arch.is_vit() && !image_size.is_multiple_of(patch) {
                return Err(usage(format!(
                    "--image-size {image_size}: not a multiple of the patch size {patch}"
                )));
            }
        }
        let interpolation = args
            .filter()
            .parse()
            .map_err(|problem| usage(format!("--interpolation: {problem}")))?;
        let crop = EvalCrop {
            image_size,
            resize_ratio: args.resize.unwrap_or(1.0),
            interpolation,
            mean,
            std,
        };
        match crop.check().as_slice() {
            [] => Ok(crop),
            problems => {
                let problems = problems.join("; ");
                let by_flag = problems.replace("eval_crop.resize_ratio", "--resize");
                Err(usage(
                    by_flag.replace("eval_crop.image_size", "--image-size"),
                ))
            }
        }
    }

    /// The loader's settings that the flags ask for.
    ///
    /// # Errors
    /// As [`Weights::eval_crop`].
    pub(crate) fn embed_options(&self, args: &WeightsArgs) -> anyhow::Result<EmbedOptions> {
        Ok(EmbedOptions {
            batch_size: args.images_at_a_time(EVAL_BATCH),
            workers: args.workers,
            transform: EvalTransform::Center(self.eval_crop(args)?),
        })
    }

    /// One line for protocols and reports.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Pixels => "pixels".to_owned(),
            Self::Backbone(loaded) => describe_model(&loaded.model),
        }
    }

    /// The backbone, for commands that need one.
    ///
    /// # Errors
    /// A usage error for `pixels`.
    pub(crate) fn backbone(&self) -> anyhow::Result<&Loaded> {
        match self {
            Self::Pixels => Err(usage_of(
                "--weights",
                "pixels: this command needs a backbone",
            )),
            Self::Backbone(loaded) => Ok(loaded),
        }
    }
}

/// The file, folder or baseline of a specification of weights, whoever is to run them.
pub(crate) fn without_prefix(spec: &str) -> &str {
    spec.strip_prefix(REFERENCE).unwrap_or(spec)
}

/// Refuses `reference:`, where weights are to be changed or written.
///
/// # Errors
/// A usage error that names the flag.
pub(crate) fn refuse_reference(flag: &str, spec: &str) -> anyhow::Result<()> {
    match spec.strip_prefix(REFERENCE) {
        None => Ok(()),
        Some(inner) => Err(usage(format!(
            "{flag} {spec}: the reference is a frozen baseline for scores and maps; use {inner}"
        ))),
    }
}

/// The same weights, run by candle-transformers: frozen, at their native size.
fn by_reference(
    spec: &str,
    which: Which,
    arch: Option<&str>,
    device: &Device,
) -> anyhow::Result<Weights> {
    let mut weights = Weights::read(spec, which, arch, device)?;
    match &mut weights {
        Weights::Pixels => return Err(usage("reference:pixels: pixels need no network")),
        Weights::Backbone(loaded) => {
            loaded.backbone = reference_backbone(&loaded.model, &loaded.params)
                .map_err(|error| usage(error.to_string()))?;
            loaded.layout = "candle-transformers";
            loaded.input.image_size = loaded.model.image_size;
        }
    }
    Ok(weights)
}

/// "vit_small/16", or "resnet50".
pub(crate) fn describe_model(model: &ModelConfig) -> String {
    match model.vit_dims() {
        Some(dims) => format!(
            "{}/{} (width {}, depth {}, heads {})",
            model.arch, model.patch_size, dims.embed_dim, dims.depth, dims.num_heads
        ),
        None => model.arch.to_string(),
    }
}

/// `ARCH[/PATCH][@SIZE][?seed=N]`.
fn random(text: &str, device: &Device) -> anyhow::Result<Loaded> {
    let whole = text;
    let wrong = |problem: String| {
        usage_of(
            "--weights",
            format!("random:{whole}: {problem}; write it as random:vit_tiny/8@64?seed=0"),
        )
    };
    let (text, seed) = match text.split_once("?seed=") {
        Some((text, seed)) => {
            let no_seed = |_| wrong(format!("{seed:?} is no seed"));
            (text, seed.parse().map_err(no_seed)?)
        }
        None => (text, 0),
    };
    let named = text.parse::<NamedArch>();
    let named = named.map_err(|problem| wrong(problem.to_string()))?;
    let model = named.model();
    let params = draw_backbone(&model, seed, device)?;
    let input = named.input();
    if let [problem, ..] = input.check().as_slice() {
        return Err(wrong(problem.clone()));
    }
    finish(model, params, input)
}

fn of_run(dir: &Path, which: Which, arch: Option<&str>, device: &Device) -> anyhow::Result<Loaded> {
    let file = file_of(which);
    if !dir.join(run_dir::CONFIG_FILE).exists()
        && let Some(hint) = weights_inside(dir)
    {
        return Err(usage(format!("{} is not a run{hint}", dir.display())));
    }
    let config = run_dir::read_config(dir)?.typed()?;
    let input = config.input();
    let model = match arch {
        Some(text) => asked(text, Some(config.model))?,
        None => config.model,
    };
    let (partial, warnings) = selfsame_checkpoint::load_newest_files(dir, &[file], device)?
        .ok_or_else(|| usage(format!("{}: the run has no checkpoint yet", dir.display())))?;
    for warning in warnings {
        tell!("warning: {warning}");
    }
    let tensors = partial
        .files
        .get(file)
        .context("the checkpoint lacks the file asked for")?;
    let mut own = tensors.clone();
    resample_aloud(&mut own, &model)?;
    let params = fitted(&own, &model, device, |error| {
        misfit::in_words(error, &model)
    })?;
    let mut loaded = finish(model, params, input)?;
    loaded.layout = "run";
    loaded.take_rest(tensors.clone());
    Ok(loaded)
}

fn file_of(which: Which) -> &'static str {
    match which {
        Which::Teacher => "teacher",
        Which::Student => "student",
    }
}

/// The weights file of a folder that another program wrote, or of a single checkpoint; `None` for
/// a run.
fn file_in_folder(dir: &Path, which: Which) -> Option<PathBuf> {
    // Those of a fine-tuning that is done are in nobody's way.
    let is_on_its_way = dir.join(CHECKPOINTS).exists() && !dir.join(RESULT_FILE).exists();
    if dir.join(run_dir::CONFIG_FILE).exists() || is_on_its_way {
        return None;
    }
    if dir.join("manifest.json").exists() {
        let file = dir.join(format!("{}.safetensors", file_of(which)));
        return file.exists().then_some(file);
    }
    // timm's and transformers' names, the newer first, and that of `finetune`.
    let names = ["model.safetensors", "pytorch_model.bin", FINETUNED];
    let mut files = names.iter().map(|name| dir.join(name));
    files.find(|file| file.exists())
}

fn of_file(
    path: &Path,
    which: Which,
    arch: Option<&str>,
    device: &Device,
) -> anyhow::Result<Loaded> {
    let is_of_checkpoint = selfsame_checkpoint::verify_file(path)?;
    refuse_other_kinds(path)?;
    let is = |name: &str| is_of_checkpoint && path.file_stem().is_some_and(|stem| stem == name);
    if is("optimizer") || is("state") {
        return Err(usage(
            "that is the state of training, not weights; name the run, or the checkpoint's folder",
        ));
    }
    let is_students = is("student");
    if which == Which::Student && !is_students && !names_student(path) {
        return Err(usage(
            "--which student: the file holds one network and does not call it a student; without \
             --which that one is taken",
        ));
    }
    let mut weights = read_weights(path, which.into()).map_err(|error| match error {
        ModelError::OtherNetwork { there, .. } => anyhow::Error::new(error)
            .context(format!("--which {there} takes the one that is there")),
        error => error.into(),
    })?;
    let told = told(path, &weights, arch)?;
    let model = match (arch, told.model) {
        (Some(text), Some(told)) => asked(text, Some(told))?,
        (Some(text), None) => asked(text, infer_model(&weights.tensors).ok())?,
        (None, Some(told)) => told,
        (None, None) => infer_model(&weights.tensors)?,
    };
    for difference in told.beside.differences() {
        let flag = match &difference {
            Difference::Cut { edge, side } => format!(": --resize {:.4} does so", edge / side),
            _ => String::new(),
        };
        tell!("warning: {difference}{flag}");
    }
    resample_aloud(&mut weights.tensors, &model)?;
    let stated = match told.input {
        Some(input) => Some(input),
        None => weights
            .input(&told.beside, &model)
            .map_err(|error| usage(format!("{:#}", anyhow::Error::new(error))))?,
    };
    let input = stated.unwrap_or_else(|| {
        tell!(
            "note: nothing says how the pictures of these weights were normalised; ImageNet's mean \
             and standard deviation are taken"
        );
        InputConfig::imagenet(&model)
    });
    let tensors = weights.tensors;
    let misfit = |error| {
        let error = misfit::in_words(error, &model);
        match arch {
            Some(text) => usage(format!("--arch {text}: {error}")),
            None => error,
        }
    };
    let params = fitted(&tensors, &model, device, misfit)?;
    let mut loaded = finish(model, params, input)?;
    loaded.layout = if is_pth(path)? && weights.layout == Layout::Selfsame {
        "dino"
    } else {
        weights.layout.name()
    };
    loaded.others = weights.left_out;
    loaded.file_metadata = weights.metadata;
    loaded.take_rest(tensors);
    Ok(loaded)
}

/// Whether a file calls some of its tensors a student's; what cannot be read is told elsewhere.
fn names_student(path: &Path) -> bool {
    match read_weights(path, Which::Teacher.into()) {
        Ok(teacher) => {
            let mut others = teacher.left_out.keys();
            others.any(|name| name.split('.').any(|part| part == "student"))
        }
        Err(_) => true,
    }
}

/// What a folder that is no run holds instead, with what to write.
fn weights_inside(dir: &Path) -> Option<String> {
    for index in [
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
    ] {
        if dir.join(index).exists() {
            return Some(format!(
                "; its weights are in several files, of which {index} tells, and those are not read: \
                 save them in one, in transformers by save_pretrained(max_shard_size=\"100GB\")"
            ));
        }
    }
    let entries = std::fs::read_dir(dir).ok()?;
    let mut inside: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    inside.retain(|path| {
        let kind = path.extension().and_then(|kind| kind.to_str());
        matches!(kind, Some("safetensors" | "pth")) || path.join("manifest.json").exists()
    });
    inside.sort();
    let newest = inside.last()?;
    Some(format!("; to use what is in it: {}", newest.display()))
}

/// Resamples a patch kernel of another size and position embeddings that were learned on another
/// grid, and says so.
///
/// # Errors
/// If they are those of no square, or the model is none that can be built.
pub(crate) fn resample_aloud(
    tensors: &mut BTreeMap<String, Tensor>,
    model: &ModelConfig,
) -> anyhow::Result<()> {
    let problems = model.check();
    if !problems.is_empty() {
        return Err(ModelError::Config(problems).into());
    }
    if let Some((from, to)) = fit_patches(tensors, model)? {
        tell!("note: the kernel of patches of {from}x{from} pixels was resampled to {to}x{to}");
    }
    if let Some((from, to)) = fit_positions(tensors, model)? {
        tell!(
            "note: position embeddings of {}x{} patches were resampled to {}x{}",
            from.0,
            from.1,
            to.0,
            to.1
        );
    }
    Ok(())
}

/// The parameters of `model` with the values of `tensors`, whose shapes are looked at before memory
/// is taken; `misfit` words what does not fit.
fn fitted(
    tensors: &BTreeMap<String, Tensor>,
    model: &ModelConfig,
    device: &Device,
    misfit: impl Fn(ModelError) -> anyhow::Error,
) -> anyhow::Result<ParamStore> {
    check_backbone(model, tensors).map_err(&misfit)?;
    let params = draw_backbone(model, 0, device)?;
    params.load_part(tensors, "backbone.").map_err(misfit)?;
    Ok(params)
}

fn finish(model: ModelConfig, params: ParamStore, input: InputConfig) -> anyhow::Result<Loaded> {
    let backbone = build_backbone(&model, &params)?;
    Ok(Loaded {
        model,
        params,
        backbone,
        input,
        layout: "drawn",
        others: BTreeMap::new(),
        head: BTreeMap::new(),
        dtypes: BTreeMap::new(),
        file_metadata: BTreeMap::new(),
    })
}
