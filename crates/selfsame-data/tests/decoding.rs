//! Every kind of file that is read, against what Pillow makes of it (`golden/make_golden.py`).

use selfsame_data::Limits;
use selfsame_data::decode::decode_bytes;

const FILES: &str = include_str!("golden/decoding.txt");
const BYTES: &[u8] = include_bytes!("golden/decoding.bin");

#[test]
fn files_of_every_kind_become_the_pictures_that_pillow_makes_of_them() {
    let mut problems = Vec::new();
    for line in FILES.lines() {
        let (name, numbers) = line.split_once(' ').unwrap();
        let numbers: Vec<usize> = numbers.split(' ').map(|n| n.parse().unwrap()).collect();
        let [width, height, tolerance, at, length, pixels_at] = numbers[..] else {
            panic!("{line}");
        };
        let expected = &BYTES[pixels_at..pixels_at + width * height * 3];
        match decode_bytes(&BYTES[at..at + length], &Limits::default()) {
            Err(error) => problems.push(format!("{name}: {error}")),
            Ok(picture) if picture.dimensions() != (width as u32, height as u32) => {
                problems.push(format!("{name}: {:?}", picture.dimensions()));
            }
            Ok(picture) => {
                let apart = picture.as_raw().iter().zip(expected);
                let most = apart.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                if usize::from(most) > tolerance {
                    problems.push(format!("{name}: {most} apart, {tolerance} allowed"));
                }
            }
        }
    }
    assert_eq!(problems, [""; 0]);
    assert_eq!(FILES.lines().count(), 33);
}
