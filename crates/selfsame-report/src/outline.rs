use image::{Rgb, RgbImage};
use imageproc::drawing::{draw_filled_rect_mut, draw_hollow_rect_mut};
use imageproc::rect::Rect;

use crate::font::Words;

const LABEL: Words = Words {
    size: 15.0,
    bold: true,
};
/// Height of the plate under a label, and what it is wider than the label.
const PLATE: u32 = 17;
const BESIDE: u32 = 6;
const WHITE: [u8; 3] = [255; 3];

/// A box on a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlined<'a> {
    /// Left, top, width and height in pixels of the picture.
    pub place: [u32; 4],
    /// Of its lines and of the plate under its label.
    pub color: [u8; 3],
    /// Its name, short.
    pub label: &'a str,
    /// Of its lines in pixels.
    pub thickness: u32,
}

/// Draws boxes onto a picture, small ones over large ones, and the labels over all of them: each at
/// a corner of its box or elsewhere along its lines, where it hides no other, as long as there is
/// such a place.
pub fn outline(image: &mut RgbImage, boxes: &[Outlined]) {
    let mut by_area: Vec<&Outlined> = boxes.iter().collect();
    by_area.sort_by_key(|outlined| u64::from(outlined.place[2]) * u64::from(outlined.place[3]));
    for outlined in by_area.iter().rev() {
        let [left, top, width, height] = outlined.place;
        for i in 0..outlined.thickness {
            let size = |side: u32| side.saturating_sub(2 * i).max(1);
            let frame =
                Rect::at((left + i) as i32, (top + i) as i32).of_size(size(width), size(height));
            draw_hollow_rect_mut(image, frame, Rgb(outlined.color));
        }
    }
    // Small boxes have the fewest places, hence choose first.
    let mut taken: Vec<Rect> = Vec::new();
    for outlined in by_area {
        let plate = free_place(outlined, &taken, image.dimensions());
        draw_filled_rect_mut(image, plate, Rgb(outlined.color));
        let text = [plate.left() + 3, plate.top()];
        LABEL.draw(image, text, WHITE, outlined.label);
        taken.push(plate);
    }
}

/// The first place of a label that hides no other, or the one that hides least.
fn free_place(outlined: &Outlined, taken: &[Rect], picture: (u32, u32)) -> Rect {
    let hidden = |plate: &Rect| -> u64 {
        let common = taken.iter().filter_map(|other| plate.intersect(*other));
        common
            .map(|rect| u64::from(rect.width()) * u64::from(rect.height()))
            .sum()
    };
    let mut places = places(outlined, picture);
    let first = places.next().expect("a box has a corner");
    let mut best = (hidden(&first), first);
    for place in places {
        if best.0 == 0 {
            break;
        }
        let hidden = hidden(&place);
        if hidden < best.0 {
            best = (hidden, place);
        }
    }
    best.1
}

/// Where a label may stand, inside the picture: the corners of its box, then along its lines.
fn places(outlined: &Outlined, (width, height): (u32, u32)) -> impl Iterator<Item = Rect> + use<> {
    let [left, top, box_width, box_height] = outlined.place;
    let plate = LABEL.width(outlined.label) + BESIDE;
    let (right, bottom) = (
        (left + box_width).saturating_sub(plate),
        (top + box_height).saturating_sub(PLATE),
    );
    let (right, bottom) = (right.max(left), bottom.max(top));
    let corners = [(left, top), (right, top), (left, bottom), (right, bottom)];
    let steps_down = (top..=bottom).step_by(PLATE as usize + 1);
    let beside = steps_down.flat_map(move |y| [(left, y), (right, y)]);
    let steps_across = (left..=right).step_by(plate as usize + 1);
    let above = steps_across.flat_map(move |x| [(x, top), (x, bottom)]);
    let inside = move |(x, y): (u32, u32)| {
        let x = x.min(width.saturating_sub(plate));
        let y = y.min(height.saturating_sub(PLATE));
        Rect::at(x as i32, y as i32).of_size(plate, PLATE)
    };
    corners.into_iter().chain(beside).chain(above).map(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlined(place: [u32; 4], label: &str) -> Outlined<'_> {
        Outlined {
            place,
            color: [255, 0, 0],
            label,
            thickness: 2,
        }
    }

    #[test]
    fn outlines_at_the_border_and_of_one_pixel_are_drawn() {
        let mut image = RgbImage::new(50, 40);
        let mut small = outlined([49, 39, 1, 1], "10");
        small.color = [0, 0, 255];
        outline(&mut image, &[outlined([0, 0, 50, 40], "1"), small]);
        assert_eq!(image.get_pixel(49, 10).0, [255, 0, 0]);
        assert!(image.pixels().any(|pixel| pixel.0 == [0, 0, 255]));
        outline(&mut RgbImage::new(4, 3), &[outlined([0, 0, 4, 3], "wide")]);
    }

    #[test]
    fn labels_of_boxes_in_one_place_do_not_hide_one_another() {
        let names: Vec<String> = (1..=24).map(|i| i.to_string()).collect();
        let boxes: Vec<Outlined> = names
            .iter()
            .map(|name| outlined([30, 20, 200, 180], name))
            .collect();
        let mut taken: Vec<Rect> = Vec::new();
        for outlined in &boxes {
            let plate = free_place(outlined, &taken, (300, 300));
            assert!(taken.iter().all(|other| plate.intersect(*other).is_none()));
            taken.push(plate);
        }
        // Small ones first: the label inside is seen whole.
        let mut image = RgbImage::new(300, 300);
        let mut inner = outlined([30, 20, 60, 60], "7");
        inner.color = [0, 255, 0];
        outline(&mut image, &[inner, outlined([30, 20, 200, 180], "8")]);
        assert_eq!(image.get_pixel(31, 21).0, [0, 255, 0]);
    }
}
