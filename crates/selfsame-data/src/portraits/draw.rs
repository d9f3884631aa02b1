//! Draws a person: background, hair behind, shoulders, face, features, hair in front, light.
//!
//! Units: the origin is the middle of the face, 1 is about half its height, v points down.

use std::f64::consts::{FRAC_PI_2, PI};

use image::RgbImage;

use super::PORTRAIT_SIZE;
use super::canvas::{Canvas, Color, Frame, Point};
use super::person::{Beard, Gender, Hair, Person, Picture};

/// One portrait, a pure function of the two.
pub(crate) fn draw(person: &Person, picture: &Picture) -> RgbImage {
    let [from, to] = picture.background;
    let gradient = |share| mix(from, to, share);
    let angle = picture.background_angle;
    let mut canvas = Canvas::new(PORTRAIT_SIZE as usize, picture.frame, angle, gradient);
    things_behind(&mut canvas, picture);
    let face = Face::new(person, picture);
    face.hair_behind(&mut canvas);
    face.shoulders(&mut canvas);
    face.head(&mut canvas);
    face.beard(&mut canvas);
    face.age_lines(&mut canvas);
    face.mouth(&mut canvas);
    face.nose(&mut canvas);
    face.eyes(&mut canvas);
    face.hair_in_front(&mut canvas);
    lit(&canvas, picture)
}

fn things_behind(canvas: &mut Canvas, picture: &Picture) {
    let whole = f64::from(PORTRAIT_SIZE);
    canvas.set_frame(Frame {
        center: (0.0, 0.0),
        scale: whole,
        angle: 0.0,
    });
    for &([x, y, rx, ry], color) in &picture.things_behind {
        if rx > ry {
            canvas.ellipse((x, y), (rx, ry), color);
        } else {
            canvas.polygon(
                &[(x - rx, y - ry), (x + rx, y - ry), (x + rx, y + ry)],
                color,
            );
        }
    }
    canvas.set_frame(picture.frame);
}

/// Slope of light over the picture, colour of the light, grain.
fn lit(canvas: &Canvas, picture: &Picture) -> RgbImage {
    let (sin, cos) = picture.light_angle.sin_cos();
    let mut noise = picture.grain_seed | 1;
    canvas.shrink(|x, y, color| {
        let light = 1.0 + picture.light_slope * ((x - 0.5) * cos + (y - 0.5) * sin);
        // xorshift64: plain and fast, the quality of grain does not matter.
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        let grain = picture.grain * ((noise >> 40) as f64 / (1u64 << 23) as f64 - 1.0);
        let mut out = color;
        for (channel, gain) in out.iter_mut().zip(picture.gain) {
            *channel = ((f64::from(*channel) * light * gain + grain) as f32).clamp(0.0, 255.0);
        }
        out
    })
}

fn mix(from: Color, to: Color, share: f64) -> Color {
    let share = share as f32;
    [0, 1, 2].map(|i| from[i] + (to[i] - from[i]) * share)
}

fn darker(color: Color, by: f64) -> Color {
    mix(color, [0.0; 3], by)
}

/// A person in one picture, with what follows from age worked out.
struct Face<'a> {
    person: &'a Person,
    picture: &'a Picture,
    /// 0 at 18, 1 at 80.
    old: f64,
    /// Half the height of the face.
    half_height: f64,
    /// A colour for hair that always differs from the skin it lies on.
    hair: Color,
    line: Color,
}

impl<'a> Face<'a> {
    fn new(person: &'a Person, picture: &'a Picture) -> Self {
        let old = (f64::from(picture.age) - 18.0) / 62.0;
        let distance: f32 = person
            .hair_color
            .iter()
            .zip(person.skin)
            .map(|(h, s)| (h - s).abs())
            .sum();
        let hair = if distance < 120.0 {
            darker(person.hair_color, 0.6)
        } else {
            person.hair_color
        };
        Self {
            person,
            picture,
            old,
            half_height: 0.98 + 0.16 * old,
            hair,
            line: darker(person.skin, 0.55),
        }
    }

    /// The outline of the face at `angle` from the top, clockwise; `grow` makes it larger.
    fn outline(&self, angle: f64, grow: f64) -> Point {
        let (sin, cos) = angle.sin_cos();
        let v = -cos;
        // Cheeks sag with age: the jaw narrows later.
        let taper = self.person.taper * (1.0 - 0.35 * self.old);
        let narrow = 1.0 - taper * v.max(0.0).powf(self.person.squareness);
        // A square jaw is not only wider but fuller than an ellipse.
        let fullness = sin.signum() * sin.abs().powf(2.2 / (1.0 + self.person.squareness));
        let u = if v > 0.0 { fullness * narrow } else { sin };
        (
            u * self.person.half_width * grow,
            v * self.half_height * grow,
        )
    }

    fn arc(&self, from: f64, to: f64, grow: f64) -> Vec<Point> {
        const STEPS: usize = 24;
        (0..=STEPS)
            .map(|i| self.outline(from + (to - from) * i as f64 / STEPS as f64, grow))
            .collect()
    }

    /// Moves a feature sideways with the turn of the head.
    fn turned(&self, (u, v): Point) -> Point {
        (u + self.picture.turn * (1.0 - 0.3 * v.abs()), v)
    }

    fn hair_behind(&self, canvas: &mut Canvas) {
        let (end, flare) = match self.person.hair {
            Hair::Long => (1.95, 0.2),
            Hair::Wavy => (1.75, 0.34),
            Hair::Bob => (1.12, 0.3),
            Hair::Short | Hair::Quiff | Hair::Wreath => return,
        };
        let mut points = self.arc(-FRAC_PI_2, FRAC_PI_2, 1.18);
        let side = self.person.half_width * 1.18;
        let steps = 12;
        let edge = |i: usize| {
            let share = i as f64 / steps as f64;
            let wave = if self.person.hair == Hair::Wavy {
                0.07 * (share * 16.0).sin()
            } else {
                0.0
            };
            (side + flare * share + wave, end * share)
        };
        points.extend((1..=steps).map(edge));
        points.extend((1..=steps).rev().map(edge).map(|(u, v)| (-u, v)));
        canvas.polygon(&points, darker(self.hair, 0.25));
    }

    fn shoulders(&self, canvas: &mut Canvas) {
        let man = self.person.gender == Gender::Male;
        let neck = if man { 0.5 } else { 0.36 };
        let width = if man { 1.75 } else { 1.4 };
        let collar = self.half_height + 0.36;
        canvas.polygon(
            &[
                (-neck, 0.5),
                (neck, 0.5),
                (neck + 0.08, collar + 0.25),
                (-neck - 0.08, collar + 0.25),
            ],
            darker(self.person.skin, 0.22),
        );
        let slope = collar + 0.3;
        canvas.polygon(
            &[
                (-neck - 0.1, collar),
                (0.0, collar + 0.28),
                (neck + 0.1, collar),
                (width * 0.8, slope),
                (width, slope + 0.35),
                (width + 0.15, 6.0),
                (-width - 0.15, 6.0),
                (-width, slope + 0.35),
                (-width * 0.8, slope),
            ],
            self.picture.clothes,
        );
        canvas.stroke(
            &[
                (-neck - 0.1, collar),
                (0.0, collar + 0.28),
                (neck + 0.1, collar),
            ],
            0.09,
            self.picture.collar,
        );
    }

    fn head(&self, canvas: &mut Canvas) {
        if matches!(self.person.hair, Hair::Short | Hair::Quiff | Hair::Wreath) {
            for side in [-1.0, 1.0] {
                let at = side * (self.person.half_width + 0.03);
                canvas.ellipse((at, 0.02), (0.13, 0.22), darker(self.person.skin, 0.12));
            }
        }
        canvas.polygon(&self.arc(-PI, PI, 1.0), self.person.skin);
    }

    fn beard(&self, canvas: &mut Canvas) {
        let mouth = self.mouth_height();
        let color = self.hair;
        match self.person.beard {
            Beard::None => return,
            Beard::Moustache => {}
            Beard::Goatee => {
                let center = self.turned((0.0, self.half_height * 0.9));
                canvas.ellipse(center, (0.24, 0.26), color);
            }
            Beard::Full => {
                let mut points = self.arc(FRAC_PI_2 + 0.1, 1.5 * PI - 0.1, 1.05);
                let (_, top) = points[0];
                points.push(self.turned((-self.person.half_width * 0.72, top + 0.2)));
                points.push(self.turned((-0.42, mouth - 0.16)));
                points.push(self.turned((0.42, mouth - 0.16)));
                points.push(self.turned((self.person.half_width * 0.72, top + 0.2)));
                canvas.polygon(&points, color);
            }
        }
        let points = [
            (-0.34, mouth - 0.02),
            (0.0, mouth - 0.17),
            (0.34, mouth - 0.02),
        ]
        .map(|point| self.turned(point));
        canvas.stroke(&points, 0.1, color);
    }

    fn mouth_height(&self) -> f64 {
        0.56 * self.half_height
    }

    fn mouth(&self, canvas: &mut Canvas) {
        let (v, smile) = (self.mouth_height(), self.picture.smile);
        let lips = self.person.lip_height * (1.0 - 0.35 * self.old);
        let half = 0.27 + 0.3 * smile.max(0.0);
        let curve = |at: f64, lift: f64| self.turned((at * half, v - smile * at * at + lift));
        let open = self.picture.mouth_open;
        let upper = (-6..=6).map(|i| f64::from(i) / 6.0).map(|at| {
            let bow = (1.0 - at * at) * lips * if at.abs() < 0.2 { 0.8 } else { 1.0 };
            curve(at, -bow - open * 0.4 * (1.0 - at * at))
        });
        let lower = (-6..=6).rev().map(|i| f64::from(i) / 6.0);
        let lower = lower.map(|at| curve(at, (1.0 - at * at) * (lips * 1.25 + open)));
        let skin = self.person.skin;
        let red = [skin[0] * 0.78, skin[1] * 0.48, skin[2] * 0.5];
        canvas.polygon(&upper.chain(lower).collect::<Vec<_>>(), red);
        let inner: Vec<Point> = (-6..=6).map(|i| curve(f64::from(i) / 6.0, 0.0)).collect();
        canvas.stroke(&inner, 0.035 + open * 0.7, darker(red, 0.6));
    }

    fn nose(&self, canvas: &mut Canvas) {
        let tip = -0.1 + self.person.nose_length;
        let side = if self.picture.turn > 0.0 { -1.0 } else { 1.0 };
        let points = [(side * 0.03, -0.05), (side * 0.14, tip), (0.0, tip + 0.05)]
            .map(|point| self.turned(point));
        canvas.stroke(&points, 0.045, self.line);
    }

    fn eyes(&self, canvas: &mut Canvas) {
        let person = self.person;
        let v = -0.12;
        let open = 0.105 * (1.0 - 0.4 * self.old);
        for side in [-1.0, 1.0] {
            let (u, _) = self.turned((side * person.eye_distance, v));
            canvas.ellipse((u, v), (0.165, open), [240.0, 240.0, 236.0]);
            let iris = (u + self.picture.gaze, v);
            canvas.ellipse(iris, (0.085, open.min(0.085)), person.eye_color);
            canvas.ellipse(iris, (0.04, 0.04), [10.0; 3]);
            let lid: Vec<Point> = (-4..=4)
                .map(|i| f64::from(i) / 4.0)
                .map(|at| (u + at * 0.175, v - open * (1.0 - at * at)))
                .collect();
            canvas.stroke(&lid, 0.035, darker(person.skin, 0.75));
            if person.gender == Gender::Female {
                let corner = (u + side * 0.15, v - 0.03);
                canvas.stroke(&[corner, (u + side * 0.26, v - 0.11)], 0.04, [20.0; 3]);
            }
            let brow: Vec<Point> = (-3..=3)
                .map(|i| f64::from(i) / 3.0)
                .map(|at| {
                    let arch = person.brow_arch * (1.0 - at * at);
                    (
                        u + side * 0.02 + at * 0.2,
                        v - 0.24 - arch - side * at * 0.02,
                    )
                })
                .collect();
            canvas.stroke(&brow, person.brow_width, darker(self.hair, 0.35));
        }
        if person.glasses {
            self.glasses(canvas, v);
        }
    }

    fn glasses(&self, canvas: &mut Canvas, v: f64) {
        let dark = [25.0, 22.0, 28.0];
        for side in [-1.0, 1.0] {
            let (u, _) = self.turned((side * (self.person.eye_distance + 0.01), v));
            let ring: Vec<Point> = (0..=16)
                .map(|i| (f64::from(i) / 16.0 * 2.0 * PI).sin_cos())
                .map(|(sin, cos)| (u + 0.27 * cos, v + 0.02 + 0.22 * sin))
                .collect();
            canvas.stroke(&ring, 0.055, dark);
            canvas.stroke(
                &[
                    (u + side * 0.27, v),
                    (side * self.person.half_width, v - 0.04),
                ],
                0.05,
                dark,
            );
        }
        let bridge = [self.turned((-0.07, v)), self.turned((0.07, v))];
        canvas.stroke(&bridge, 0.055, dark);
    }

    /// Furrows on the forehead, at the eyes and from nose to mouth; bags below the eyes.
    fn age_lines(&self, canvas: &mut Canvas) {
        let color = darker(self.person.skin, 0.38);
        let furrows = ((self.old - 0.2) * 6.0).floor().clamp(0.0, 4.0) as i32;
        for i in 0..furrows {
            let v = -0.5 - 0.1 * f64::from(i);
            let half = 0.34 - 0.03 * f64::from(i);
            let points =
                [(-half, v + 0.02), (0.0, v), (half, v + 0.02)].map(|point| self.turned(point));
            canvas.stroke(&points, 0.03, color);
        }
        for side in [-1.0, 1.0] {
            let eye = self.person.eye_distance;
            if self.old > 0.3 {
                let depth = 0.03 + 0.03 * self.old;
                let fold = [(0.16, 0.3), (0.27, 0.42), (0.36, 0.66)];
                canvas.stroke(&fold.map(|(u, v)| self.turned((side * u, v))), depth, color);
            }
            if self.old > 0.45 {
                let bag = [(eye - 0.14, 0.04), (eye, 0.1), (eye + 0.14, 0.04)];
                canvas.stroke(&bag.map(|(u, v)| self.turned((side * u, v))), 0.03, color);
                for lift in [-0.09, 0.0, 0.09] {
                    let foot = [(eye + 0.2, -0.1 + lift * 0.4), (eye + 0.33, -0.1 + lift)];
                    canvas.stroke(&foot.map(|(u, v)| self.turned((side * u, v))), 0.022, color);
                }
            }
        }
    }

    fn hair_in_front(&self, canvas: &mut Canvas) {
        let person = self.person;
        // The hairline rises with age.
        let hairline = -0.62 - 0.24 * self.old + 0.16 * (person.fringe - 0.5) * (1.0 - self.old);
        let half = person.half_width;
        match person.hair {
            Hair::Short | Hair::Quiff => {
                let mut points = self.arc(-1.35, 1.35, 1.09);
                if person.hair == Hair::Quiff {
                    for point in &mut points {
                        if point.1 < -0.75 {
                            point.1 -= 0.2 + 0.25 * (point.0 + 0.5 * half).max(0.0);
                        }
                    }
                }
                let temples = 0.1 + 0.25 * self.old;
                points.push((half * 0.93, -0.3));
                points.push((half * 0.72, hairline + 0.05 - temples));
                points.push((half * 0.3, hairline));
                points.push((-half * 0.3, hairline - 0.03));
                points.push((-half * 0.72, hairline + 0.05 - temples));
                points.push((-half * 0.93, -0.3));
                canvas.polygon(&points, self.hair);
            }
            Hair::Wreath => {
                for side in [-1.0, 1.0] {
                    let mut points = self.arc(side * 0.75, side * 1.6, 1.1);
                    points.push((side * half * 0.9, 0.0));
                    points.push((side * half * 0.72, -0.6));
                    canvas.polygon(&points, self.hair);
                }
            }
            Hair::Long | Hair::Wavy | Hair::Bob => {
                let end = if person.hair == Hair::Bob { 1.05 } else { 1.6 };
                let mut points = self.arc(-FRAC_PI_2, FRAC_PI_2, 1.16);
                let parting = half * (person.fringe - 0.5) * 0.9;
                points.push((half * 1.2, end));
                points.push((half * 0.9, end * 0.9));
                points.push((half * 0.8, 0.15));
                points.push((half * 0.66, hairline + 0.3));
                points.push((parting, hairline - 0.12));
                points.push((-half * 0.66, hairline + 0.3));
                points.push((-half * 0.8, 0.15));
                points.push((-half * 0.9, end * 0.9));
                points.push((-half * 1.2, end));
                canvas.polygon(&points, self.hair);
            }
        }
    }
}
