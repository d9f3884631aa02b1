//! Memory whose neighbours cannot be touched: one byte too far ends the test program.

#![expect(unsafe_code, reason = "pages are asked for from the system")]

use std::ops::{Deref, DerefMut};

/// Which end of the elements lies at a page that can neither be read nor written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Start,
    End,
}

/// A slice between two forbidden pages, at one of them exactly.
pub(super) struct Guarded<T: Copy> {
    mapping: *mut u8,
    mapped: usize,
    first: *mut T,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    pub(super) fn new(values: &[T], side: Side) -> Self {
        // SAFETY: asks a number of the system and changes nothing.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let bytes = size_of_val(values);
        let inner = bytes.div_ceil(page).max(1) * page;
        let mapped = inner + 2 * page;
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, at an address that the system chooses.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_NONE,
                private,
                -1,
                0,
            )
        };
        assert_ne!(mapping, libc::MAP_FAILED, "the system gives {mapped} bytes");
        let mapping: *mut u8 = mapping.cast();
        // SAFETY: the pages between the first and the last of this mapping.
        let open = unsafe {
            let writable = libc::PROT_READ | libc::PROT_WRITE;
            libc::mprotect(mapping.add(page).cast(), inner, writable)
        };
        assert_eq!(open, 0, "the system opens the inner pages");
        let offset = match side {
            Side::Start => page,
            Side::End => page + inner - bytes,
        };
        assert_eq!(offset % align_of::<T>(), 0, "elements are aligned");
        // SAFETY: `bytes` bytes from there on lie in the open pages.
        let first: *mut T = unsafe { mapping.add(offset) }.cast();
        // SAFETY: source and target hold as many elements, are aligned and do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), first, values.len()) };
        Self {
            mapping,
            mapped,
            first,
            len: values.len(),
        }
    }
}

impl<T: Copy> Deref for Guarded<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `new` wrote so many elements there; they live as long as the mapping.
        unsafe { std::slice::from_raw_parts(self.first, self.len) }
    }
}

impl<T: Copy> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }
}

impl<T: Copy> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: the whole of a mapping that nothing refers to any more.
        unsafe { libc::munmap(self.mapping.cast(), self.mapped) };
    }
}
