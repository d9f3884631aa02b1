//! Once its buffers have grown, a workspace makes crops without allocating.
#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use image::{Rgb, RgbImage};
use selfsame_augment::{AugmentConfig, EvalCrop, Level, MultiCrop, SampleKey, Workspace};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting for each thread.
struct Counting;

// SAFETY: every call is handed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: likewise.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: likewise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `work` allocates on this thread.
fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn the_counter_counts() {
    let mut values = Vec::with_capacity(1);
    values.push(7u8);
    // One for the box, one for the room that is asked for anew.
    let count = allocations(|| {
        std::hint::black_box(Box::new(7));
        std::hint::black_box(&mut values).reserve(100);
    });
    assert_eq!(count, 2);
}

#[test]
fn crops_allocate_nothing_once_the_buffers_have_grown() {
    let config = AugmentConfig {
        global_size: 64,
        local_size: 32,
        ..AugmentConfig::default()
    };
    let multi_crop = MultiCrop::new(config).unwrap();
    let images = [(250, 250), (120, 200), (333, 90)]
        .map(|(w, h)| RgbImage::from_fn(w, h, |x, y| Rgb([x as u8, y as u8, (x * y) as u8])));
    for level in Level::available() {
        let mut workspace = Workspace::with_level(level);
        let mut views: Vec<_> = (0..multi_crop.num_views())
            .map(|v| vec![0.0; 3 * multi_crop.view_size(v).pow(2)])
            .collect();
        let mut out: Vec<_> = views.iter_mut().map(Vec::as_mut_slice).collect();
        let mut epoch = |epoch| {
            for sample in 0..60 {
                let key = SampleKey {
                    run_seed: 3,
                    epoch,
                    sample,
                };
                let image = &images[sample as usize % 3];
                let drawn = multi_crop.write_crops(image, key, &mut out, &mut workspace);
                assert_eq!(drawn.unwrap().len(), 10);
            }
        };
        // One epoch to grow in; its crops are among the largest there are.
        assert_ne!(allocations(|| epoch(0)), 0, "{level}, buffers that grow");
        assert_eq!(allocations(|| epoch(0)), 0, "{level}, crops seen before");
        assert_eq!(allocations(|| epoch(1)), 0, "{level}, new crops");
    }
}

#[test]
fn evaluation_allocates_nothing_once_the_buffers_have_grown() {
    let image = RgbImage::from_pixel(200, 150, Rgb([1, 2, 3]));
    let crop = EvalCrop {
        image_size: 64,
        ..EvalCrop::default()
    };
    let mut out = vec![0.0; 3 * 64 * 64];
    for level in Level::available() {
        let mut workspace = Workspace::with_level(level);
        crop.write(&image, &mut out, &mut workspace);
        let again = allocations(|| crop.write(&image, &mut out, &mut workspace));
        assert_eq!(again, 0, "{level}");
    }
}
