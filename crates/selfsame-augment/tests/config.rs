//! The `[augment]` table: defaults, round trip, refusals, and the list of problems.

use image::RgbImage;
use selfsame_augment::{
    AugmentConfig, AugmentError, EvalCrop, Interpolation, MultiCrop, SampleKey, StandardCrop,
    ViewOp,
};

/// The table as the command line's documentation prints it.
const DOCUMENTED: &str = r#"
global_size = 128
local_size = 128
local_crops = 8
global_scale = [0.4, 1.0]
local_scale = [0.05, 0.4]
ratio = [0.75, 1.3333333333333333]
interpolation = "bilinear"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
global1 = [
  { op = "horizontal_flip", p = 0.5 },
  { op = "color_jitter", p = 0.8, brightness = 0.4, contrast = 0.4, saturation = 0.2, hue = 0.1 },
  { op = "grayscale", p = 0.2 },
  { op = "gaussian_blur", p = 1.0, radius = [0.1, 2.0] },
]
global2 = [
  { op = "horizontal_flip", p = 0.5 },
  { op = "color_jitter", p = 0.8, brightness = 0.4, contrast = 0.4, saturation = 0.2, hue = 0.1 },
  { op = "grayscale", p = 0.2 },
  { op = "gaussian_blur", p = 0.1, radius = [0.1, 2.0] },
  { op = "solarize", p = 0.2, threshold = 128 },
]
local = [
  { op = "horizontal_flip", p = 0.5 },
  { op = "color_jitter", p = 0.8, brightness = 0.4, contrast = 0.4, saturation = 0.2, hue = 0.1 },
  { op = "grayscale", p = 0.2 },
  { op = "gaussian_blur", p = 0.5, radius = [0.1, 2.0] },
]
"#;

#[test]
fn default_is_the_documented_table() {
    assert_eq!(
        toml::from_str::<AugmentConfig>(DOCUMENTED).unwrap(),
        AugmentConfig::default()
    );
    assert_eq!(
        toml::from_str::<AugmentConfig>("").unwrap(),
        AugmentConfig::default()
    );
    assert_eq!(AugmentConfig::default().check(), [""; 0]);
}

#[test]
fn configuration_survives_a_round_trip_through_toml() {
    let config = AugmentConfig {
        global_size: 224,
        local_size: 96,
        local_crops: 6,
        interpolation: Interpolation::Bicubic,
        std: [0.1, 0.2, 0.30000000000000004],
        global1: vec![],
        local: vec![
            ViewOp::Solarize {
                p: 0.25,
                threshold: 7,
            },
            ViewOp::Grayscale { p: 1.0 },
        ],
        ..AugmentConfig::default()
    };
    let text = toml::to_string(&config).unwrap();
    assert_eq!(
        toml::from_str::<AugmentConfig>(&text).unwrap(),
        config,
        "{text}"
    );
}

#[test]
fn left_out_values_of_an_operation_have_defaults() {
    let text = r#"local = [{ op = "gaussian_blur" }, { op = "color_jitter", hue = 0.2 }]"#;
    let config: AugmentConfig = toml::from_str(text).unwrap();
    let jitter = ViewOp::ColorJitter {
        p: 1.0,
        brightness: 0.0,
        contrast: 0.0,
        saturation: 0.0,
        hue: 0.2,
    };
    assert_eq!(
        config.local,
        [
            ViewOp::GaussianBlur {
                p: 1.0,
                radius: [0.1, 2.0]
            },
            jitter
        ]
    );
}

#[test]
fn unknown_names_are_refused_and_named() {
    for (text, name) in [
        ("global_sise = 3", "global_sise"),
        (
            r#"local = [{ op = "gaussian_blur", sigma = 1.0 }]"#,
            "sigma",
        ),
        (r#"local = [{ op = "sharpen" }]"#, "sharpen"),
        (r#"interpolation = "nearest""#, "nearest"),
    ] {
        // The whole text of the error quotes the line.
        let error = toml::from_str::<AugmentConfig>(text).unwrap_err();
        let message = error.message();
        assert!(message.contains(&format!("`{name}`")), "{message}");
    }
    assert!(toml::from_str::<AugmentConfig>("mean = [0.5, 0.5]").is_err());
}

#[test]
fn check_lists_every_problem_with_its_key() {
    let config = AugmentConfig {
        global_size: 0,
        local_size: 0,
        global_scale: [0.9, 0.4],
        local_scale: [0.0, 1.5],
        ratio: [0.0, 1.0],
        mean: [0.5, f64::NAN, 0.5],
        std: [0.2, 0.2, 0.0],
        global1: vec![
            ViewOp::HorizontalFlip { p: 1.5 },
            ViewOp::ColorJitter {
                p: 0.5,
                brightness: -1.0,
                contrast: f64::INFINITY,
                saturation: -0.1,
                hue: 0.6,
            },
        ],
        global2: vec![ViewOp::GaussianBlur {
            p: f64::NAN,
            radius: [-0.1, 2.0],
        }],
        local: vec![
            ViewOp::GaussianBlur {
                p: 0.5,
                radius: [2.0, 1.0],
            },
            ViewOp::Solarize {
                p: -0.5,
                threshold: 0,
            },
        ],
        ..AugmentConfig::default()
    };
    let keys: Vec<String> = config
        .check()
        .iter()
        .map(|problem| problem.split(": ").next().unwrap().to_owned())
        .collect();
    let expected = [
        "augment.global_size",
        "augment.local_size",
        "augment.global_scale",
        "augment.local_scale",
        "augment.ratio",
        "augment.mean[1]",
        "augment.std[2]",
        "augment.global1[0].p",
        "augment.global1[1].brightness",
        "augment.global1[1].contrast",
        "augment.global1[1].saturation",
        "augment.global1[1].hue",
        "augment.global2[0].p",
        "augment.global2[0].radius",
        "augment.local[0].radius",
        "augment.local[1].p",
    ];
    assert_eq!(keys, expected);

    let error = MultiCrop::new(config).unwrap_err();
    assert!(matches!(&error, AugmentError::Config(problems) if problems.len() == expected.len()));
    assert!(
        error
            .to_string()
            .contains("augment.global_size: 0 is not a size"),
        "{error}"
    );
}

#[test]
fn local_size_may_be_anything_when_there_are_no_local_crops() {
    let config = AugmentConfig {
        local_crops: 0,
        local_size: 0,
        ..AugmentConfig::default()
    };
    assert_eq!(config.check(), [""; 0]);
    assert_eq!(MultiCrop::new(config).unwrap().num_views(), 2);

    let config = AugmentConfig {
        global_size: 2,
        local_crops: 0,
        local_size: usize::MAX,
        ..AugmentConfig::default()
    };
    let (picture, mut global) = (RgbImage::new(5, 5), [0.0; 2 * 3 * 2 * 2]);
    let sample = (&picture, SampleKey::default());
    let multi_crop = MultiCrop::new(config).unwrap();
    let drawn = multi_crop.write_batch(&[sample], &mut global, &mut []);
    assert_eq!(drawn.unwrap()[0].len(), 2);
}

#[test]
fn a_mean_or_deviation_that_gives_infinite_values_is_a_problem() {
    for (mean, std, key) in [
        (1e300, 0.5, "augment.mean[1]"),
        (-1e39, 0.5, "augment.mean[1]"),
        (0.5, 1e300, "augment.std[1]"),
        (0.5, 1e-40, "augment.std[1]"),
        (1e38, 1e-3, "augment.std[1]"),
        (-1e38, 1e-3, "augment.std[1]"),
    ] {
        let mut config = AugmentConfig::default();
        (config.mean[1], config.std[1]) = (mean, std);
        let problems = config.check();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(key), "{problems:?}");
    }
    for (mean, std) in [(0.0, 1.0), (-3.0, 1e-30), (1e30, 1e-3), (0.0, 1e30)] {
        let mut config = AugmentConfig::default();
        (config.mean[1], config.std[1]) = (mean, std);
        assert_eq!(config.check(), [""; 0]);
    }
}

#[test]
fn names_that_are_unknown_are_errors_with_the_known_ones() {
    for value in Interpolation::ALL {
        assert_eq!(value.name().parse(), Ok(value));
    }
    let error = "nearest".parse::<Interpolation>().unwrap_err();
    let error: Box<dyn std::error::Error> = error.into();
    let text = "\"nearest\" is no interpolation; known are bilinear, bicubic, bilinear_pillow13, \
                bicubic_pillow13";
    assert_eq!(error.to_string(), text);
}

#[test]
fn crops_of_an_evaluation_and_of_a_probe_survive_a_round_trip_too() {
    let eval = EvalCrop {
        image_size: 96,
        resize_ratio: 256.0 / 224.0,
        ..EvalCrop::default()
    };
    let text = toml::to_string(&eval).unwrap();
    assert_eq!(toml::from_str::<EvalCrop>(&text).unwrap(), eval, "{text}");
    assert_eq!(toml::from_str::<EvalCrop>("").unwrap(), EvalCrop::default());
    assert!(toml::from_str::<EvalCrop>("size = 3").is_err());

    let standard = StandardCrop {
        flip_p: 0.25,
        interpolation: Interpolation::BicubicPillow13,
        ..StandardCrop::default()
    };
    let text = toml::to_string(&standard).unwrap();
    let back: StandardCrop = toml::from_str(&text).unwrap();
    assert_eq!(back, standard, "{text}");
    assert!(toml::from_str::<StandardCrop>("p = 0.5").is_err());
}

#[test]
#[should_panic(expected = "eval_crop.image_size: 8589934592 is more than 16384")]
fn an_evaluation_at_a_size_beyond_memory_is_refused_in_words() {
    let crop = EvalCrop {
        image_size: 1 << 33,
        ..EvalCrop::default()
    };
    crop.apply(&RgbImage::new(1, 1));
}
