//! Maps of a network laid over the picture they belong to.

use image::{Rgb, RgbImage};

use crate::colormap::heat;
use crate::error::ReportError;

/// One number for each cell of a grid over a picture, row by row.
///
/// A cell whose number is not finite, or that a map not made by [`CellMap::new`] lacks, has no
/// colour and holds nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct CellMap {
    /// Cells across.
    pub columns: usize,
    /// Cells down.
    pub rows: usize,
    /// `rows × columns` numbers, not negative.
    pub values: Vec<f32>,
}

/// Share of the map's colour in the mixture; the rest is the picture without its colours.
const SHARE: f64 = 0.7;

/// The colour of a part of the range, over a pixel of this grey.
fn mixed(part: f64, grey: f64) -> Rgb<u8> {
    Rgb(heat(part).map(|c| (SHARE * f64::from(c) + (1.0 - SHARE) * grey) as u8))
}

/// The colours of a map from its lowest number to its highest, as they are over a medium grey.
pub fn heat_bar(width: u32, height: u32) -> RgbImage {
    let last = f64::from(width.max(2) - 1);
    RgbImage::from_fn(width, height, |x, _| mixed(f64::from(x) / last, 128.0))
}

impl CellMap {
    /// A map of `columns × rows` cells.
    ///
    /// # Errors
    /// [`ReportError::Cells`] for no cell or another number of values, and
    /// [`ReportError::NegativeCell`] for a value below 0.
    pub fn new(columns: usize, rows: usize, values: Vec<f32>) -> Result<CellMap, ReportError> {
        let found = values.len();
        if found == 0 || columns.checked_mul(rows) != Some(found) {
            return Err(ReportError::Cells {
                columns,
                rows,
                found,
            });
        }
        if let Some(cell) = values.iter().position(|value| *value < 0.0) {
            let value = values[cell];
            return Err(ReportError::NegativeCell { cell, value });
        }
        Ok(CellMap {
            columns,
            rows,
            values,
        })
    }

    /// The cell of a pixel of a picture of this size.
    fn cell(&self, x: u32, y: u32, image: &RgbImage) -> usize {
        let column = x as usize * self.columns / image.width() as usize;
        let row = y as usize * self.rows / image.height() as usize;
        row * self.columns + column
    }

    /// The lowest and the highest of the finite numbers.
    fn range(&self) -> (f32, f32) {
        let finite = self.values.iter().filter(|value| value.is_finite());
        finite.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| {
            (low.min(*value), high.max(*value))
        })
    }

    /// Whether no cell differs from another, so that there is nothing to see.
    pub fn is_flat(&self) -> bool {
        let (low, high) = self.range();
        low >= high
    }

    /// The map in colours over the picture in grey: each cell as it is, without smoothing, from
    /// the lowest (dark) to the highest (bright). A map that is flat has no colours.
    pub fn over(&self, image: &RgbImage) -> RgbImage {
        let (low, high) = self.range();
        let (spread, flat) = (f64::from(high) - f64::from(low), self.is_flat());
        RgbImage::from_fn(image.width(), image.height(), |x, y| {
            let [r, g, b] = image.get_pixel(x, y).0.map(f64::from);
            let grey = 0.299 * r + 0.587 * g + 0.114 * b;
            let value = self.values.get(self.cell(x, y, image));
            let Some(value) = value.filter(|value| value.is_finite() && !flat) else {
                return Rgb([grey as u8; 3]);
            };
            mixed((f64::from(*value) - f64::from(low)) / spread, grey)
        })
    }

    /// Which cells, largest first, hold this share of the sum of the map's finite numbers; one for
    /// each value.
    pub fn holding(&self, share: f64) -> Vec<bool> {
        let mut order: Vec<usize> = (0..self.values.len()).collect();
        order.retain(|&i| self.values[i].is_finite());
        order.sort_by(|&a, &b| self.values[b].total_cmp(&self.values[a]).then(a.cmp(&b)));
        let finite = self.values.iter().filter(|value| value.is_finite());
        let total: f64 = finite.map(|&value| f64::from(value)).sum();
        let mut inside = vec![false; self.values.len()];
        let mut sum = 0.0;
        for i in order {
            if sum >= share * total {
                break;
            }
            sum += f64::from(self.values[i]);
            inside[i] = true;
        }
        inside
    }

    /// Draws the border of the cells that hold this share of the map's sum.
    pub fn outline(&self, image: &mut RgbImage, share: f64, color: [u8; 3]) {
        let inside = self.holding(share);
        let thick = (image.width().min(image.height()) / 100).max(1);
        let is_in = |x: u32, y: u32, image: &RgbImage| {
            let cell = inside.get(self.cell(x, y, image));
            cell.copied().unwrap_or(false)
        };
        let (width, height) = image.dimensions();
        let mut border = Vec::new();
        for y in 0..height {
            for x in 0..width {
                if !is_in(x, y, image) {
                    continue;
                }
                let near = |a: u32, b: u32| (a.saturating_sub(thick), (a + thick).min(b - 1));
                let ((left, right), (top, bottom)) = (near(x, width), near(y, height));
                let corners = [(left, y), (right, y), (x, top), (x, bottom)];
                let at_edge = x < thick || y < thick || x + thick >= width || y + thick >= height;
                if at_edge || corners.iter().any(|&(x, y)| !is_in(x, y, image)) {
                    border.push((x, y));
                }
            }
        }
        for (x, y) in border {
            image.put_pixel(x, y, Rgb(color));
        }
    }
}

/// Three numbers for each cell as red, green and blue, each from its 1st to its 99th hundredth;
/// such as the first three principal components of patch features.
///
/// `values` holds a row of `[columns × rows]` triples for each of several pictures, so that one
/// colour means the same in all. Each picture becomes `side` pixels wide.
pub fn rgb_cells(values: &[Vec<[f32; 3]>], columns: usize, side: u32) -> Vec<RgbImage> {
    let bounds = [0, 1, 2].map(|c| {
        let mut all: Vec<f32> = values.iter().flatten().map(|triple| triple[c]).collect();
        all.sort_by(f32::total_cmp);
        let at = |share: f64| all.get((share * all.len() as f64) as usize).copied();
        (at(0.01).unwrap_or(0.0), at(0.99).unwrap_or(1.0))
    });
    let picture = |cells: &Vec<[f32; 3]>| {
        let (columns, width) = (columns.max(1), side.max(1));
        let rows = (cells.len() / columns).max(1);
        let height = (rows * width as usize).div_ceil(columns) as u32;
        RgbImage::from_fn(width, height, |x, y| {
            let column = x as usize * columns / width as usize;
            let row = y as usize * rows / height as usize;
            let cell = row * columns + column;
            Rgb([0, 1, 2].map(|c| {
                let (low, high) = bounds[c];
                let value = cells.get(cell).map_or(0.0, |triple| triple[c]);
                (255.0 * ((value - low) / (high - low).max(1e-30)).clamp(0.0, 1.0)) as u8
            }))
        })
    };
    values.iter().map(picture).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> CellMap {
        CellMap {
            columns: 2,
            rows: 2,
            values: vec![0.1, 0.5, 0.3, 0.1],
        }
    }

    #[test]
    fn the_brightest_cell_is_where_the_largest_number_is() {
        let over = map().over(&RgbImage::from_pixel(20, 20, Rgb([100; 3])));
        let brightness = |x, y| {
            over.get_pixel(x, y)
                .0
                .iter()
                .map(|&c| u32::from(c))
                .sum::<u32>()
        };
        assert!(brightness(15, 5) > brightness(5, 15));
        assert!(brightness(5, 15) > brightness(5, 5));
        assert_eq!(
            over.get_pixel(0, 0),
            over.get_pixel(9, 9),
            "cells are not smoothed"
        );
    }

    #[test]
    fn the_outline_goes_round_the_fewest_cells_with_the_share() {
        assert_eq!(map().holding(0.6), [false, true, true, false]);
        assert_eq!(map().holding(0.45), [false, true, false, false]);
        let mut image = RgbImage::new(20, 20);
        map().outline(&mut image, 0.45, [255, 0, 0]);
        assert_eq!(image.get_pixel(10, 5).0, [255, 0, 0]);
        assert_eq!(image.get_pixel(15, 5).0, [0, 0, 0], "inside");
        assert_eq!(image.get_pixel(5, 5).0, [0, 0, 0], "outside");
    }

    #[test]
    fn a_map_needs_a_number_for_each_cell_and_none_below_zero() {
        let error =
            |columns, rows, values| CellMap::new(columns, rows, values).unwrap_err().to_string();
        assert_eq!(CellMap::new(2, 2, map().values).unwrap(), map());
        assert_eq!(
            error(2, 2, vec![0.0; 3]),
            "a map of 2 x 2 cells has 3 numbers"
        );
        assert_eq!(
            error(usize::MAX, 2, vec![0.0; 3]),
            format!("a map of {} x 2 cells has 3 numbers", usize::MAX)
        );
        assert_eq!(error(0, 3, vec![]), "a map of 0 x 3 cells has 0 numbers");
        assert_eq!(
            error(1, 2, vec![0.0, -0.5]),
            "cell 1 of a map is -0.5; the numbers must not be negative"
        );
    }

    #[test]
    fn a_cell_without_a_finite_number_has_no_colour_and_is_not_held() {
        let picture = RgbImage::from_pixel(20, 20, Rgb([200, 100, 50]));
        let grey = [200.0 * 0.299 + 100.0 * 0.587 + 50.0 * 0.114; 3].map(|c| c as u8);
        let mut with_nan = map();
        with_nan.values[3] = f32::NAN;
        let mut with_infinity = map();
        with_infinity.values[3] = f32::INFINITY;
        let mut lacking = map();
        lacking.values.pop();
        for (map, cells) in [(with_nan, 4), (with_infinity, 4), (lacking, 3)] {
            let over = map.over(&picture);
            assert_eq!(over.get_pixel(15, 15).0, grey);
            assert_ne!(over.get_pixel(5, 5).0, grey);
            let expected = [false, true, false, false];
            assert_eq!(map.holding(0.5), expected[..cells]);
            let mut image = picture.clone();
            map.outline(&mut image, 0.5, [255, 0, 0]);
            assert_eq!(image.get_pixel(10, 5).0, [255, 0, 0]);
            assert_eq!(image.get_pixel(15, 15).0, [200, 100, 50]);
        }
    }

    #[test]
    fn a_map_of_one_cell_or_one_number_is_not_drawn_as_if_it_were_nothing() {
        let picture = RgbImage::from_pixel(20, 20, Rgb([100; 3]));
        for values in [vec![3.0], vec![0.5; 4], vec![f32::NAN; 4]] {
            let side = values.len() / 2 + 1 - values.len() / 4;
            let flat = CellMap::new(side, side, values).unwrap();
            assert!(flat.is_flat());
            assert!(
                flat.over(&picture)
                    .pixels()
                    .all(|pixel| pixel.0 == [100; 3])
            );
        }
        assert!(!map().is_flat());
    }

    #[test]
    fn a_bar_of_the_colours_goes_from_the_lowest_to_the_highest() {
        let bar = heat_bar(100, 4);
        let over = map().over(&RgbImage::from_pixel(20, 20, Rgb([128; 3])));
        assert_eq!(bar.get_pixel(0, 3), over.get_pixel(5, 5));
        assert_eq!(bar.get_pixel(99, 0), over.get_pixel(15, 5));
    }

    #[test]
    fn one_colour_means_the_same_in_every_picture() {
        let low = vec![[0.0, 0.0, 0.0]; 4];
        let high = vec![[1.0, 0.0, 2.0]; 4];
        let odd = rgb_cells(&[vec![[0.0; 3]; 15]], 3, 224);
        assert_eq!(odd[0].dimensions(), (224, 374));
        let pictures = rgb_cells(&[low, high], 2, 8);
        assert_eq!(pictures[0].dimensions(), (8, 8));
        assert_eq!(pictures[0].get_pixel(0, 0).0, [0, 0, 0]);
        assert_eq!(pictures[1].get_pixel(7, 7).0, [255, 0, 255]);
    }
}
