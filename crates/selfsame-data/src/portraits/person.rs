//! What a drawn person looks like, and what differs between two pictures of the same person.

use super::canvas::{Color, Frame};
use crate::rng::{Purpose, Stream};

/// The label `gender`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gender {
    Female,
    Male,
}

/// The silhouette of the hair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hair {
    /// Falls over the shoulders.
    Long,
    /// As long, in waves.
    Wavy,
    /// Ends at the chin.
    Bob,
    /// Close to the head.
    Short,
    /// High above the forehead.
    Quiff,
    /// Only at the sides.
    Wreath,
}

/// What grows below the nose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beard {
    None,
    Moustache,
    Goatee,
    Full,
}

/// What all pictures of a person share.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    pub(crate) gender: Gender,
    /// Pictures are taken within four years of it.
    pub(crate) age: f64,
    pub(crate) hair: Hair,
    pub(crate) beard: Beard,
    pub(crate) glasses: bool,
    /// Half the width of the face where it is widest; the face is about 2 high.
    pub(crate) half_width: f64,
    /// How much narrower the chin is, 0 to 1.
    pub(crate) taper: f64,
    /// How late the jaw narrows: 1 is a V, 3 a square jaw.
    pub(crate) squareness: f64,
    pub(crate) brow_width: f64,
    pub(crate) brow_arch: f64,
    pub(crate) lip_height: f64,
    pub(crate) eye_distance: f64,
    pub(crate) nose_length: f64,
    pub(crate) fringe: f64,
    pub(crate) skin: Color,
    pub(crate) hair_color: Color,
    pub(crate) eye_color: Color,
}

impl Person {
    /// The `identity`-th person of a seed. Of two neighbours one is a woman.
    pub(crate) fn new(seed: u64, identity: u64) -> Self {
        let woman_first = Stream::new(Purpose::Pair, [seed, identity / 2, 0]).chance(0.5);
        let female = woman_first == identity.is_multiple_of(2);
        let mut stream = Stream::new(Purpose::Person, [seed, identity, 0]);
        let draw = &mut stream;

        let age = draw.range(22.0, 76.0);
        let share_of_life = (age - 18.0) / 62.0;
        let hair = if female {
            [Hair::Long, Hair::Wavy, Hair::Bob][draw.below(3)]
        } else if draw.chance(0.7 * share_of_life) {
            Hair::Wreath
        } else {
            [Hair::Short, Hair::Quiff][draw.below(2)]
        };
        let beard = match draw.below(5) {
            _ if female => Beard::None,
            0 => Beard::Moustache,
            1 => Beard::Goatee,
            2 => Beard::Full,
            _ => Beard::None,
        };
        let mut of_gender = |woman: f64, man: f64, spread: f64| {
            (if female { woman } else { man }) + draw.range(-spread, spread)
        };
        Self {
            gender: if female { Gender::Female } else { Gender::Male },
            age,
            hair,
            beard,
            half_width: of_gender(0.71, 0.79, 0.05),
            taper: of_gender(0.52, 0.3, 0.07),
            squareness: of_gender(1.7, 2.8, 0.3),
            brow_width: of_gender(0.04, 0.1, 0.012),
            brow_arch: of_gender(0.09, 0.03, 0.02),
            lip_height: of_gender(0.115, 0.06, 0.012),
            eye_distance: draw.range(0.3, 0.36),
            nose_length: draw.range(0.38, 0.5),
            fringe: draw.range(0.0, 1.0),
            glasses: draw.chance(0.05 + 0.7 * share_of_life),
            skin: tinted(draw, 180.0, 200.0, 100.0),
            hair_color: tinted(draw, 20.0, 60.0, 120.0),
            eye_color: tinted(draw, 40.0, 110.0, 40.0),
        }
    }
}

/// A colour of any hue: luma within `low` and `high`, blue and red difference within `chroma` of
/// grey (BT.601).
fn tinted(draw: &mut Stream, low: f64, high: f64, chroma: f64) -> Color {
    let luma = draw.range(low, high);
    let blue = draw.range(-chroma, chroma);
    let red = draw.range(-chroma, chroma);
    [
        luma + 1.402 * red,
        luma - 0.344 * blue - 0.714 * red,
        luma + 1.772 * blue,
    ]
    .map(|c| c.clamp(0.0, 255.0) as f32)
}

/// A colour near another.
fn near(draw: &mut Stream, color: Color, by: f64) -> Color {
    color.map(|c| c + draw.range(-by, by) as f32)
}

/// What is different each time: pose, light, clothes, background.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    /// Years, 18 to 80.
    pub(crate) age: u32,
    pub(crate) frame: Frame,
    /// Where the head is turned to: features move sideways by this much.
    pub(crate) turn: f64,
    pub(crate) smile: f64,
    pub(crate) mouth_open: f64,
    pub(crate) gaze: f64,
    pub(crate) clothes: Color,
    pub(crate) collar: Color,
    pub(crate) background: [Color; 2],
    pub(crate) background_angle: f64,
    /// Center, radii (in picture widths) and colour of what stands behind.
    pub(crate) things_behind: Vec<([f64; 4], Color)>,
    pub(crate) light_angle: f64,
    pub(crate) light_slope: f64,
    pub(crate) gain: [f64; 3],
    pub(crate) grain: f64,
    pub(crate) grain_seed: u64,
}

impl Picture {
    /// The picture with this number of that person.
    pub(crate) fn new(seed: u64, sample: u64, person: &Person) -> Self {
        let mut stream = Stream::new(Purpose::Picture, [seed, sample, 0]);
        let draw = &mut stream;
        let age = (person.age + draw.range(-4.0, 4.0))
            .round()
            .clamp(18.0, 80.0) as u32;
        let scale = draw.range(17.0, 33.0);
        let frame = Frame {
            center: (draw.range(27.0, 69.0), draw.range(29.0, 61.0)),
            scale,
            angle: draw.range(-0.25, 0.25),
        };
        let exposure = draw.range(0.95, 1.05);
        let wall = tinted(draw, 135.0, 165.0, 160.0);
        Self {
            age,
            frame,
            turn: draw.range(-0.12, 0.12),
            smile: draw.range(-0.05, 0.14),
            mouth_open: if draw.chance(0.3) {
                draw.range(0.03, 0.14)
            } else {
                0.0
            },
            gaze: draw.range(-0.05, 0.05),
            clothes: tinted(draw, 105.0, 135.0, 160.0),
            collar: tinted(draw, 105.0, 135.0, 160.0),
            background: [wall, near(draw, wall, 10.0)],
            background_angle: draw.range(0.0, std::f64::consts::TAU),
            things_behind: (0..draw.below(4))
                .map(|_| {
                    let place = [
                        draw.range(0.0, 1.0),
                        draw.range(0.0, 1.0),
                        draw.range(0.05, 0.4),
                        draw.range(0.05, 0.4),
                    ];
                    (place, near(draw, wall, 20.0))
                })
                .collect(),
            light_angle: draw.range(0.0, std::f64::consts::TAU),
            light_slope: draw.range(0.0, 0.2),
            gain: [(); 3].map(|()| exposure * draw.range(0.7, 1.3)),
            grain: draw.range(0.0, 5.0),
            grain_seed: draw.below(usize::MAX) as u64,
        }
    }
}
