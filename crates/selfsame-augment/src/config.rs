use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::NameError;

/// Mean of ImageNet's training images per channel (red, green, blue), in units of full scale.
pub const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// Standard deviation of ImageNet's training images per channel, in units of full scale.
pub const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// Largest blur radius that a configuration may ask for, in pixels.
const MAX_RADIUS: f64 = 1000.0;

/// The `[augment]` table: sizes, scales and the operations of each view.
///
/// [`Default`] is the teaching notebook's `DataAugmentationDINO`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentConfig {
    /// Side of the two global crops in pixels (notebook: `input_size`).
    pub global_size: usize,
    /// Side of the local crops in pixels; the notebook uses `input_size` for all crops.
    pub local_size: usize,
    /// Number of local crops.
    #[doc(alias = "local_crops_number")]
    pub local_crops: usize,
    /// Smallest and largest share of the image's area that a global crop covers.
    pub global_scale: [f64; 2],
    /// Smallest and largest share of the image's area that a local crop covers.
    pub local_scale: [f64; 2],
    /// Smallest and largest width / height of a crop box (torchvision's default).
    pub ratio: [f64; 2],
    /// Filter of the resize (notebook: torchvision's default; official: bicubic).
    pub interpolation: Interpolation,
    /// Mean per channel, in units of full scale.
    pub mean: [f64; 3],
    /// Standard deviation per channel, in units of full scale.
    pub std: [f64; 3],
    /// Operations of the first global crop, in order, after the crop.
    pub global1: Vec<ViewOp>,
    /// Operations of the second global crop.
    pub global2: Vec<ViewOp>,
    /// Operations of every local crop.
    pub local: Vec<ViewOp>,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self {
            global_size: 128,
            local_size: 128,
            local_crops: 8,
            global_scale: [0.4, 1.0],
            local_scale: [0.05, 0.4],
            ratio: [0.75, 4.0 / 3.0],
            interpolation: Interpolation::Bilinear,
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
            global1: notebook_ops(1.0, None),
            global2: notebook_ops(0.1, Some(0.2)),
            local: notebook_ops(0.5, None),
        }
    }
}

/// The notebook's operations; only blur and solarize differ between the views.
fn notebook_ops(blur: f64, solarize: Option<f64>) -> Vec<ViewOp> {
    let mut ops = vec![
        ViewOp::HorizontalFlip { p: 0.5 },
        ViewOp::ColorJitter {
            p: 0.8,
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.2,
            hue: 0.1,
        },
        ViewOp::Grayscale { p: 0.2 },
        ViewOp::GaussianBlur {
            p: blur,
            radius: [0.1, 2.0],
        },
    ];
    if let Some(p) = solarize {
        ops.push(ViewOp::Solarize { p, threshold: 128 });
    }
    ops
}

/// One operation of a view, applied with probability `p`.
///
/// In a file: `{ op = "gaussian_blur", p = 0.5, radius = [0.1, 2.0] }`; `p` is 1 where it is left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum ViewOp {
    /// Left and right change places.
    HorizontalFlip {
        /// Probability.
        #[serde(default = "always")]
        p: f64,
    },
    /// Brightness, contrast, saturation and hue in a random order (torchvision's `ColorJitter`).
    ///
    /// A strength of 0 (the default of each) leaves its step out.
    ColorJitter {
        /// Probability.
        #[serde(default = "always")]
        p: f64,
        /// Factor drawn from U(max(0, 1 − b), 1 + b).
        #[serde(default)]
        brightness: f64,
        /// Factor drawn from U(max(0, 1 − c), 1 + c).
        #[serde(default)]
        contrast: f64,
        /// Factor drawn from U(max(0, 1 − s), 1 + s).
        #[serde(default)]
        saturation: f64,
        /// Shift drawn from U(−h, h), in turns of the colour circle; at most 0.5.
        #[serde(default)]
        hue: f64,
    },
    /// Every channel becomes the luma.
    Grayscale {
        /// Probability.
        #[serde(default = "always")]
        p: f64,
    },
    /// Pillow's `GaussianBlur`.
    GaussianBlur {
        /// Probability.
        #[serde(default = "always")]
        p: f64,
        /// Smallest and largest standard deviation in pixels of the crop.
        #[serde(default = "notebook_radius")]
        radius: [f64; 2],
    },
    /// Values at or above the threshold are inverted (Pillow's `ImageOps.solarize`).
    Solarize {
        /// Probability.
        #[serde(default = "always")]
        p: f64,
        /// First inverted value.
        #[serde(default = "half_scale")]
        threshold: u8,
    },
}

fn always() -> f64 {
    1.0
}

fn notebook_radius() -> [f64; 2] {
    [0.1, 2.0]
}

fn half_scale() -> u8 {
    128
}

/// Filter of a resize, with Pillow's antialiasing, and whose order of its two passes.
///
/// Bytes stand between the passes, so that the order shows: Pillow before 13 narrows first (but for
/// strips more than 100 times as tall as wide), Pillow 13 shortens first wherever more than twice
/// as many rows as columns go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Interpolation {
    /// Triangle, support 1; the bytes of Pillow before 13.
    Bilinear,
    /// Cubic with a = −0.5, support 2; the bytes of Pillow before 13.
    Bicubic,
    /// [`Bilinear`](Self::Bilinear) with the bytes of Pillow 13.
    BilinearPillow13,
    /// [`Bicubic`](Self::Bicubic) with the bytes of Pillow 13.
    BicubicPillow13,
}

impl Interpolation {
    /// Every value.
    pub const ALL: [Self; 4] = [
        Self::Bilinear,
        Self::Bicubic,
        Self::BilinearPillow13,
        Self::BicubicPillow13,
    ];

    /// As in a configuration: `bilinear`, `bicubic`, `bilinear_pillow13`, `bicubic_pillow13`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
            Self::BilinearPillow13 => "bilinear_pillow13",
            Self::BicubicPillow13 => "bicubic_pillow13",
        }
    }
}

impl FromStr for Interpolation {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let found = Self::ALL.into_iter().find(|value| value.name() == name);
        found.ok_or_else(|| NameError::Interpolation { name: name.into() })
    }
}

impl AugmentConfig {
    /// The shorter side, in pixels, from which on no crop of a square picture is enlarged: the
    /// smallest share of a picture that each kind of view takes still has the view's pixels.
    ///
    /// ```
    /// use selfsame_augment::AugmentConfig;
    ///
    /// let mut config = AugmentConfig { global_size: 224, local_size: 96, ..Default::default() };
    /// config.global_scale = [0.4, 1.0];
    /// config.local_scale = [0.05, 0.4];
    /// assert_eq!(config.sharp_side(), 430); // 96 pixels of a twentieth of the area
    /// config.local_crops = 0;
    /// assert_eq!(config.sharp_side(), 355); // 224 of two fifths
    /// ```
    pub fn sharp_side(&self) -> usize {
        let mut views = vec![(self.global_size, self.global_scale[0])];
        if self.local_crops > 0 {
            views.push((self.local_size, self.local_scale[0]));
        }
        let sides = views
            .into_iter()
            .map(|(size, share)| (size as f64 / share.sqrt()).ceil() as usize);
        sides.max().unwrap_or(0)
    }

    /// Every problem of this configuration, each text naming its key; empty if there is none.
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        check_size("augment.global_size", self.global_size, &mut problems);
        if self.local_crops > 0 {
            check_size("augment.local_size", self.local_size, &mut problems);
        }
        if self.local_crops > MOST_CROPS {
            let crops = self.local_crops;
            problems.push(format!(
                "augment.local_crops: {crops} is more than {MOST_CROPS}"
            ));
        }
        check_scale("augment.global_scale", self.global_scale, &mut problems);
        check_scale("augment.local_scale", self.local_scale, &mut problems);
        check_ratio("augment.ratio", self.ratio, &mut problems);
        check_mean_std("augment", self.mean, self.std, &mut problems);
        for (name, ops) in [
            ("global1", &self.global1),
            ("global2", &self.global2),
            ("local", &self.local),
        ] {
            for (i, op) in ops.iter().enumerate() {
                op.check(&format!("augment.{name}[{i}]"), &mut problems);
            }
        }
        problems
    }
}

impl ViewOp {
    fn check(&self, key: &str, problems: &mut Vec<String>) {
        let (name, p) = match *self {
            Self::HorizontalFlip { p } => ("horizontal_flip", p),
            Self::ColorJitter { p, .. } => ("color_jitter", p),
            Self::Grayscale { p } => ("grayscale", p),
            Self::GaussianBlur { p, .. } => ("gaussian_blur", p),
            Self::Solarize { p, .. } => ("solarize", p),
        };
        if !(0.0..=1.0).contains(&p) {
            problems.push(format!("{key}.p: {p} is not a probability ({name})"));
        }
        match *self {
            Self::ColorJitter {
                brightness,
                contrast,
                saturation,
                hue,
                ..
            } => {
                for (part, value) in [
                    ("brightness", brightness),
                    ("contrast", contrast),
                    ("saturation", saturation),
                ] {
                    if !(value.is_finite() && value >= 0.0) {
                        problems.push(format!(
                            "{key}.{part}: {value} is not a strength of 0 or more"
                        ));
                    }
                }
                if !(0.0..=0.5).contains(&hue) {
                    problems.push(format!("{key}.hue: {hue} is not within 0 and 0.5"));
                }
            }
            Self::GaussianBlur {
                radius: [low, high],
                ..
            } if !(low >= 0.0 && low <= high && high <= MAX_RADIUS) => {
                problems.push(format!(
                    "{key}.radius: [{low}, {high}] is not an ascending range within 0 and {MAX_RADIUS}"
                ));
            }
            _ => {}
        }
    }
}

/// Pixels of a side of a crop at most: as much as a picture may have.
pub(crate) const LARGEST_SIZE: usize = 16_384;
/// Local views of an image at most.
const MOST_CROPS: usize = 1_024;

pub(crate) fn check_size(key: &str, size: usize, problems: &mut Vec<String>) {
    match size {
        0 => problems.push(format!("{key}: 0 is not a size")),
        1..=LARGEST_SIZE => {}
        _ => problems.push(format!("{key}: {size} is more than {LARGEST_SIZE}")),
    }
}

pub(crate) fn check_scale(key: &str, [low, high]: [f64; 2], problems: &mut Vec<String>) {
    if !(low > 0.0 && low <= high && high <= 1.0) {
        problems.push(format!(
            "{key}: [{low}, {high}] is not an ascending range of shares above 0 and up to 1"
        ));
    }
}

pub(crate) fn check_ratio(key: &str, [low, high]: [f64; 2], problems: &mut Vec<String>) {
    if !(low > 0.0 && low <= high && high.is_finite()) {
        problems.push(format!(
            "{key}: [{low}, {high}] is not an ascending range above 0"
        ));
    }
}

/// # Panics
/// If there are problems.
pub(crate) fn assert_sound(problems: &[String]) {
    assert!(problems.is_empty(), "{}", problems.join("; "));
}

pub(crate) fn check_mean_std(
    table: &str,
    mean: [f64; 3],
    std: [f64; 3],
    problems: &mut Vec<String>,
) {
    // As `Normalize` takes them.
    let is_number = |value: f64| (value as f32).is_finite();
    let is_divisor = |value: f64| is_number(value) && value as f32 > 0.0;
    for (channel, value) in mean.into_iter().enumerate() {
        if !is_number(value) {
            problems.push(format!(
                "{table}.mean[{channel}]: {value} is not a number of single precision"
            ));
        }
    }
    for (channel, value) in std.into_iter().enumerate() {
        let is_not = match is_number(value) {
            true if is_divisor(value) => continue,
            true => "above 0",
            false => "a number of single precision",
        };
        problems.push(format!("{table}.std[{channel}]: {value} is not {is_not}"));
    }
    for (channel, (mean, std)) in mean.into_iter().zip(std).enumerate() {
        let ends = [0.0, 1.0].map(|end: f32| (end - mean as f32) / std as f32);
        if is_number(mean) && is_divisor(std) && !ends.iter().all(|end| end.is_finite()) {
            problems.push(format!(
                "{table}.std[{channel}]: {std} is so small that normalised values are infinite"
            ));
        }
    }
}
