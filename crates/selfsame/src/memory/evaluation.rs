//! What memory commands take that do not pretrain, and refusing what will not fit.

use candle_core::Device;
use selfsame_data::augment::AugmentConfig;
use selfsame_models::Backbone;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use super::{Budget, in_words, of_machine};
use crate::exit::usage;
use crate::weights::Weights;

/// Bytes of a number.
const FLOAT: u64 = 4;

/// Pictures on their way through a network, in batches, and the features that are kept of them.
pub(crate) struct Evaluation<'a> {
    /// What makes features of them.
    pub(crate) weights: &'a Weights,
    /// Side of the crops in pixels.
    pub(crate) size: usize,
    /// Pictures at a time.
    pub(crate) batch_size: usize,
    /// The flag that sets it, if there is one.
    pub(crate) batch_flag: Option<&'static str>,
    /// Loader threads.
    pub(crate) workers: usize,
    /// Pictures in all.
    pub(crate) pictures: usize,
    /// Rows of features in memory at the end, copies included.
    pub(crate) rows: usize,
    /// Whether a backward pass follows each batch.
    pub(crate) trains: bool,
}

impl Evaluation<'_> {
    /// Refuses what will not fit, before any picture is read.
    ///
    /// # Errors
    /// A usage error with the largest parts and what would fit.
    pub(crate) fn check(&self, device: &Device) -> anyhow::Result<()> {
        self.check_within(&left(), device)
    }

    fn check_within(&self, budget: &Budget, device: &Device) -> anyhow::Result<()> {
        let total = |size, batch| total(&self.parts(size, batch, device));
        let fits = |size, batch| total(size, batch) <= budget.bytes;
        let batch = self.batch_size.min(self.pictures).max(1);
        if budget.bytes == 0 || fits(self.size, batch) {
            return Ok(());
        }
        let mut ways = Vec::new();
        if let Some(flag) = self.batch_flag {
            let halves = std::iter::successors(Some(batch / 2), |batch| Some(batch / 2));
            let mut halves = halves.take_while(|batch| *batch > 0);
            if let Some(batch) = halves.find(|batch| fits(self.size, *batch)) {
                ways.push(format!("{flag} {batch}"));
            }
        }
        let step = self.step();
        if let Some(size) = largest(self.size / step, |steps| fits(steps * step, batch)) {
            ways.push(format!("--image-size {}", size * step));
        }
        let ways = match ways.as_slice() {
            [] => "fewer pictures or a smaller --image-size need less".to_owned(),
            ways => format!("{} would fit", ways.join(" or ")),
        };
        let mut parts = self.parts(self.size, batch, device);
        parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let parts = parts.map(|(what, bytes)| format!("{what} {}", in_words(bytes)));
        Err(usage(format!(
            "{} pictures of {} x {} pixels, {batch} at a time, need about {} of memory, {} {}: {}. \
             {ways}",
            self.pictures,
            self.size,
            self.size,
            in_words(total(self.size, batch)),
            budget.whose,
            in_words(budget.bytes),
            parts.join(", "),
        )))
    }

    fn parts(&self, size: usize, batch: usize, device: &Device) -> [(&'static str, u64); 3] {
        // Those made ahead and the one at work, and what the network got of it.
        let batches = self
            .pictures
            .div_ceil(batch)
            .min(self.workers.saturating_mul(2).saturating_add(1));
        let crops = product(&[3, size, size, batch, batches.saturating_add(1)]);
        let network = match self.weights {
            // Taken out.
            Weights::Pixels => product(&[3, size, size, batch]),
            Weights::Backbone(loaded) => match device.is_cpu() {
                true => self.of_network(loaded.backbone.as_ref(), size, batch),
                false => 0,
            },
        };
        [
            ("batches of crops", crops),
            ("the network", network),
            ("features", product(&[self.rows, self.columns_at(size)])),
        ]
    }

    /// Numbers of a row of features.
    pub(crate) fn columns(&self) -> usize {
        self.columns_at(self.size)
    }

    fn columns_at(&self, size: usize) -> usize {
        match self.weights {
            Weights::Pixels => size.saturating_mul(size).saturating_mul(3),
            Weights::Backbone(loaded) => loaded.backbone.embed_dim(),
        }
    }

    fn of_network(&self, backbone: &dyn Backbone, size: usize, batch: usize) -> u64 {
        let bytes = match self.trains {
            true => backbone.bytes_per_image(size, size).saturating_mul(batch),
            false => backbone.bytes_to_evaluate(batch, [size; 2], rayon::current_num_threads()),
        };
        bytes as u64
    }

    /// Sizes are multiples of this.
    fn step(&self) -> usize {
        match self.weights {
            Weights::Pixels => 1,
            Weights::Backbone(loaded) => loaded.backbone.patch_size().max(1),
        }
    }
}

/// Refuses maps over a picture at its own size that will not fit.
///
/// # Errors
/// A usage error that names `--whole`.
pub(crate) fn check_whole(
    backbone: &dyn Backbone,
    [height, width]: [usize; 2],
    device: &Device,
) -> anyhow::Result<()> {
    check_whole_within(&left(), backbone, [height, width], device)
}

fn check_whole_within(
    budget: &Budget,
    backbone: &dyn Backbone,
    [height, width]: [usize; 2],
    device: &Device,
) -> anyhow::Result<()> {
    let need = |height: usize, width: usize| {
        let network = match device.is_cpu() {
            true => backbone.bytes_to_evaluate(1, [height, width], rayon::current_num_threads()),
            false => 0,
        };
        // The pixels as the network gets them, and a sheet with a picture for each head.
        let pixels = product(&[2, 3, height, width]);
        let drawn = product(&[2 * 8, 3, height, width]) / FLOAT;
        (network as u64)
            .saturating_add(pixels)
            .saturating_add(drawn)
    };
    if budget.bytes == 0 || need(height, width) <= budget.bytes {
        return Ok(());
    }
    let share = |percent: usize| (height * percent / 100, width * percent / 100);
    let smaller = largest(100, |percent| {
        let (height, width) = share(percent);
        need(height, width) <= budget.bytes
    });
    let smaller = smaller.map_or(String::new(), |percent| {
        let (height, width) = share(percent);
        format!("A picture of {width} x {height} would fit; ")
    });
    Err(usage(format!(
        "--whole: a picture of {width} x {height} pixels needs about {} of memory, {} {}. \
         {smaller}without --whole it is resized to --image-size",
        in_words(need(height, width)),
        budget.whose,
        in_words(budget.bytes),
    )))
}

/// Refuses sheets of crops that will not fit.
///
/// # Errors
/// A usage error that names the keys of their sizes.
pub(crate) fn check_preview(augment: &AugmentConfig) -> anyhow::Result<()> {
    let budget = left();
    let square = |views: usize, size: usize| product(&[views, size, size]) / FLOAT;
    // A crop of the first sheet and two global ones.
    let pixels = square(3, augment.global_size)
        .saturating_add(square(augment.local_crops, augment.local_size));
    // As numbers and, on a sheet, as bytes.
    let bytes = pixels.saturating_mul(3 * (FLOAT + 1));
    if budget.bytes == 0 || bytes <= budget.bytes {
        return Ok(());
    }
    Err(usage(format!(
        "crops of {} and {} x {} of {} pixels a side need about {} of memory to draw, {} {}; a \
         smaller augment.global_size, augment.local_size or augment.local_crops needs less",
        augment.global_size,
        augment.local_crops,
        augment.local_size,
        augment.local_size,
        in_words(bytes),
        budget.whose,
        in_words(budget.bytes),
    )))
}

/// What the machine has left, swap included, if the process's control group allows that much.
fn left() -> Budget {
    let memory = MemoryRefreshKind::nothing().with_ram().with_swap();
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(memory));
    let left = system.available_memory().saturating_add(system.free_swap());
    let allowed = of_machine();
    match left == 0 || allowed.bytes < left {
        true => Budget {
            whose: "there are",
            ..allowed
        },
        false => Budget {
            bytes: left,
            whose: "this machine has",
        },
    }
}

/// The largest number from 1 to `most` for which `fits` holds, which holds below it too.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match fits(middle) {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    (low > 0).then_some(low)
}

/// Bytes of so many numbers; what no number holds is the largest one.
fn product(factors: &[usize]) -> u64 {
    let factors = factors.iter().map(|factor| *factor as u64);
    factors.fold(FLOAT, u64::saturating_mul)
}

fn total(parts: &[(&'static str, u64)]) -> u64 {
    let bytes = parts.iter().map(|(_, bytes)| *bytes);
    bytes.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Which;

    const MIB: u64 = 1 << 20;

    fn budget(mib: u64) -> Budget {
        Budget {
            bytes: mib * MIB,
            whose: "this machine has",
        }
    }

    fn evaluation(weights: &Weights, size: usize, pictures: usize) -> Evaluation<'_> {
        Evaluation {
            weights,
            size,
            batch_size: 64,
            batch_flag: Some("--batch-size"),
            workers: 2,
            pictures,
            rows: 2 * pictures,
            trains: false,
        }
    }

    #[test]
    fn a_refusal_says_what_would_fit_and_that_fits() {
        let weights = Weights::open("random:vit_tiny/16@64", Which::Teacher, None, &Device::Cpu);
        let weights = weights.unwrap();
        let mut asked = evaluation(&weights, 1024, 500);
        let error = asked.check_within(&budget(1024), &Device::Cpu).unwrap_err();
        let text = error.to_string();
        let told = |flag: &str| -> usize {
            let rest = text.split(flag).nth(1).expect(&text).trim_start();
            rest.split(' ').next().unwrap().parse().expect(&text)
        };
        (asked.batch_size, asked.size) = (told("--batch-size"), 1024);
        assert!(asked.check_within(&budget(1024), &Device::Cpu).is_ok());
        (asked.batch_size, asked.size) = (64, told("--image-size"));
        assert!(asked.check_within(&budget(1024), &Device::Cpu).is_ok());
        assert!(asked.size.is_multiple_of(16) && asked.size > 64, "{text}");
    }

    #[test]
    fn pixels_are_counted_as_features() {
        let of_pixels = evaluation(&Weights::Pixels, 5000, 2000);
        let text = of_pixels.check_within(&budget(1 << 18), &Device::Cpu);
        let text = text.unwrap_err().to_string();
        assert!(text.contains("features 1117.6 GiB"), "{text}");
        let small = evaluation(&Weights::Pixels, 64, 2000);
        assert!(small.check_within(&budget(500), &Device::Cpu).is_ok());
    }

    #[test]
    fn what_no_machine_has_is_refused_and_not_wrapped_around() {
        let mut huge = evaluation(&Weights::Pixels, usize::MAX, 2000);
        huge.workers = usize::MAX;
        assert!(huge.check_within(&budget(1 << 18), &Device::Cpu).is_err());
        let mut busy = evaluation(&Weights::Pixels, 64, 2000);
        busy.workers = usize::MAX;
        assert!(busy.check_within(&budget(500), &Device::Cpu).is_ok());
    }

    #[test]
    fn a_whole_picture_is_refused_by_its_size() {
        let weights = Weights::open("random:vit_tiny/16@64", Which::Teacher, None, &Device::Cpu);
        let weights = weights.unwrap();
        let backbone = weights.backbone().unwrap().backbone.as_ref();
        let check = |size| check_whole_within(&budget(2048), backbone, size, &Device::Cpu);
        assert!(check([768, 1024]).is_ok());
        let text = check([9000, 12_000]).unwrap_err().to_string();
        assert!(
            text.contains("--whole") && text.contains("would fit"),
            "{text}"
        );
    }
}
