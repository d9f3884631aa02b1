//! A small painter: polygons and strokes on a canvas that is shrunk at the end.

use image::RgbImage;

/// Red, green, blue, 0 to 255.
pub(crate) type Color = [f32; 3];
/// A point in the units of whoever draws; [`Frame`] turns it into pixels.
pub(crate) type Point = (f64, f64);

/// Canvas pixels along each side of a final pixel.
const OVERSAMPLING: usize = 3;

/// Where the drawing's origin lies, how large its unit is and how it is turned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// The origin in final pixels.
    pub(crate) center: Point,
    /// Final pixels per unit.
    pub(crate) scale: f64,
    /// Clockwise angle in radians.
    pub(crate) angle: f64,
}

impl Frame {
    fn to_canvas(self, (u, v): Point) -> Point {
        let (sin, cos) = self.angle.sin_cos();
        let x = self.center.0 + self.scale * (cos * u - sin * v);
        let y = self.center.1 + self.scale * (sin * u + cos * v);
        (x * OVERSAMPLING as f64, y * OVERSAMPLING as f64)
    }
}

/// A square picture under work.
#[derive(Debug)]
pub(crate) struct Canvas {
    /// Side in canvas pixels.
    side: usize,
    pixels: Vec<Color>,
    frame: Frame,
    /// Kept between calls, so that a polygon allocates nothing.
    corners: Vec<Point>,
    crossings: Vec<f64>,
}

impl Canvas {
    /// A canvas that will be `size` final pixels wide and high, a gradient in one direction on it.
    ///
    /// `color` is that of a share, 0.5 in the middle and at most 0 to 1; `angle` is where it grows.
    pub(crate) fn new(size: usize, frame: Frame, angle: f64, color: impl Fn(f64) -> Color) -> Self {
        let side = size * OVERSAMPLING;
        let (sin, cos) = angle.sin_cos();
        let from_middle = |at: usize| (at as f64 + 0.5) / side as f64 - 0.5;
        let across: Vec<f64> = (0..side).map(|x| 0.5 + from_middle(x) * cos).collect();
        let mut pixels = Vec::with_capacity(side * side);
        for y in 0..side {
            let down = from_middle(y) * sin;
            let shares = across.iter().map(|across| (across + down).clamp(0.0, 1.0));
            pixels.extend(shares.map(&color));
        }
        Self {
            side,
            pixels,
            frame,
            corners: Vec::new(),
            crossings: Vec::new(),
        }
    }

    /// Draws in other coordinates from now on.
    pub(crate) fn set_frame(&mut self, frame: Frame) {
        self.frame = frame;
    }

    /// Fills a closed polygon (even–odd rule).
    pub(crate) fn polygon(&mut self, points: &[Point], color: Color) {
        let mut corners = std::mem::take(&mut self.corners);
        corners.clear();
        corners.extend(points.iter().map(|&point| self.frame.to_canvas(point)));
        let top = corners.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let bottom = corners
            .iter()
            .map(|p| p.1)
            .fold(f64::NEG_INFINITY, f64::max);
        let first = top.floor().max(0.0) as usize;
        let end = bottom.ceil().clamp(0.0, self.side as f64) as usize;
        for y in first..end {
            let center = y as f64 + 0.5;
            self.crossings.clear();
            let mut from = corners[corners.len() - 1];
            for &to in &corners {
                if (from.1 <= center) != (to.1 <= center) {
                    let share = (center - from.1) / (to.1 - from.1);
                    self.crossings.push(from.0 + share * (to.0 - from.0));
                }
                from = to;
            }
            self.crossings.sort_by(f64::total_cmp);
            let row = &mut self.pixels[y * self.side..(y + 1) * self.side];
            for span in self.crossings.chunks_exact(2) {
                // Pixels whose centre lies within the span.
                let start = (span[0] - 0.5).ceil().max(0.0) as usize;
                let stop = ((span[1] - 0.5).ceil().max(0.0) as usize).min(row.len());
                if start < stop {
                    row[start..stop].fill(color);
                }
            }
        }
        self.corners = corners;
    }

    /// Fills an ellipse.
    pub(crate) fn ellipse(&mut self, center: Point, radii: Point, color: Color) {
        const CORNERS: usize = 28;
        let mut points = [(0.0, 0.0); CORNERS];
        for (i, point) in points.iter_mut().enumerate() {
            let (sin, cos) = (i as f64 / CORNERS as f64 * std::f64::consts::TAU).sin_cos();
            *point = (center.0 + radii.0 * cos, center.1 + radii.1 * sin);
        }
        self.polygon(&points, color);
    }

    /// Draws a line of constant width along the points.
    pub(crate) fn stroke(&mut self, points: &[Point], width: f64, color: Color) {
        for pair in points.windows(2) {
            let ((u0, v0), (u1, v1)) = (pair[0], pair[1]);
            let length = (u1 - u0).hypot(v1 - v0).max(1e-9);
            let (du, dv) = (
                -(v1 - v0) / length * width / 2.0,
                (u1 - u0) / length * width / 2.0,
            );
            // Half a width longer at both ends, so that neighbouring pieces close the bend.
            let (eu, ev) = (dv * 0.6, -du * 0.6);
            self.polygon(
                &[
                    (u0 + du - eu, v0 + dv - ev),
                    (u1 + du + eu, v1 + dv + ev),
                    (u1 - du + eu, v1 - dv + ev),
                    (u0 - du - eu, v0 - dv - ev),
                ],
                color,
            );
        }
    }

    /// Averages blocks of canvas pixels, then lets `finish` (x, y within 0 and 1) light each pixel.
    pub(crate) fn shrink(&self, mut finish: impl FnMut(f64, f64, Color) -> Color) -> RgbImage {
        let size = self.side / OVERSAMPLING;
        let mut picture = RgbImage::new(size as u32, size as u32);
        for (x, y, out) in picture.enumerate_pixels_mut() {
            let (left, top) = (x as usize * OVERSAMPLING, y as usize * OVERSAMPLING);
            let mut sum = [0.0f32; 3];
            for row in top..top + OVERSAMPLING {
                for [red, green, blue] in &self.pixels[row * self.side + left..][..OVERSAMPLING] {
                    sum = [sum[0] + red, sum[1] + green, sum[2] + blue];
                }
            }
            let mean = sum.map(|sum| sum / (OVERSAMPLING * OVERSAMPLING) as f32);
            let place = |at: u32| (f64::from(at) + 0.5) / size as f64;
            out.0 = finish(place(x), place(y), mean).map(to_byte);
        }
        picture
    }
}

/// The nearest byte, halves away from zero: `round` without a call.
fn to_byte(channel: f32) -> u8 {
    let whole = channel as u8;
    whole.saturating_add(u8::from(channel - f32::from(whole) >= 0.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Frame = Frame {
        center: (0.0, 0.0),
        scale: 1.0,
        angle: 0.0,
    };

    #[test]
    fn a_square_covers_its_pixels_and_half_of_those_it_cuts() {
        let mut canvas = Canvas::new(6, PLAIN, 0.0, |_| [0.0; 3]);
        canvas.polygon(&[(1.0, 1.0), (3.5, 1.0), (3.5, 3.0), (1.0, 3.0)], [90.0; 3]);
        let picture = canvas.shrink(|_, _, color| color);
        let row: Vec<u8> = (0..6).map(|x| picture.get_pixel(x, 1).0[0]).collect();
        assert_eq!(row[..3], [0, 90, 90]);
        assert!((30..=60).contains(&row[3]), "{row:?}");
        assert_eq!(row[4..], [0, 0]);
        assert_eq!(picture.get_pixel(1, 0).0[0], 0);
        assert_eq!(picture.get_pixel(1, 3).0[0], 0);
    }

    #[test]
    fn a_gradient_grows_in_its_direction() {
        let right = Canvas::new(4, PLAIN, 0.0, |share| [share as f32 * 255.0; 3]);
        let right = right.shrink(|_, _, color| color);
        let row: Vec<u8> = (0..4).map(|x| right.get_pixel(x, 2).0[0]).collect();
        assert_eq!(row, [32, 96, 159, 223]);
        assert!((0..4).all(|y| right.get_pixel(1, y).0 == [96; 3]));
        let down = Canvas::new(4, PLAIN, std::f64::consts::FRAC_PI_2, |share| {
            [share as f32; 3]
        });
        assert!(down.pixels.is_sorted_by(|a, b| a[0] <= b[0] + 1e-6));
    }

    #[test]
    fn bytes_are_rounded_as_round_does() {
        let near = |x: f32| [x.next_down(), x, x.next_up()];
        for half in -4..=520 {
            for x in near(half as f32 / 2.0) {
                // Exact in f64; the `round` of some of Windows's C libraries is not.
                let rounded = (f64::from(x) + 0.5).floor();
                assert_eq!(to_byte(x), rounded as u8, "{x}");
            }
        }
    }

    #[test]
    fn a_frame_turns_clockwise_and_scales() {
        let frame = Frame {
            center: (10.0, 10.0),
            scale: 2.0,
            angle: std::f64::consts::FRAC_PI_2,
        };
        let (x, y) = frame.to_canvas((1.0, 0.0));
        assert!((x - 30.0).abs() < 1e-9 && (y - 36.0).abs() < 1e-9);
    }

    #[test]
    fn what_lies_outside_is_cut_off() {
        let mut canvas = Canvas::new(4, PLAIN, 0.0, |_| [0.0; 3]);
        canvas.ellipse((0.0, 0.0), (50.0, 50.0), [7.0; 3]);
        canvas.stroke(&[(-20.0, -20.0), (-10.0, -30.0)], 3.0, [9.0; 3]);
        let picture = canvas.shrink(|_, _, color| color);
        assert!(picture.pixels().all(|pixel| pixel.0 == [7; 3]));
    }
}
