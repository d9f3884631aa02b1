//! From a view with strides to bytes in row-major order.

/// Where a tensor's elements lie in its storage, in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

impl Layout {
    /// Number of elements; `None` if it does not fit a machine word.
    pub(crate) fn count(&self) -> Option<usize> {
        self.shape
            .iter()
            .try_fold(1usize, |count, size| count.checked_mul(*size))
    }

    /// One past the last element that is used; 0 for an empty tensor, `None` on overflow.
    pub(crate) fn end(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let reach = self.shape.iter().zip(&self.strides);
        let last = reach
            .into_iter()
            .try_fold(self.offset, |last, (size, stride)| {
                last.checked_add((size - 1).checked_mul(*stride)?)
            })?;
        last.checked_add(1)
    }

    /// Whether the elements lie in row-major order without gaps.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut expected = 1usize;
        for (size, stride) in self.shape.iter().zip(&self.strides).rev() {
            if *size != 1 && *stride != expected {
                return false;
            }
            expected = expected.saturating_mul(*size);
        }
        true
    }

    /// The tensor's bytes; `storage` must hold [`Layout::end`] elements of `width` bytes.
    pub(crate) fn gather(&self, storage: &[u8], width: usize) -> Vec<u8> {
        let count = self.count().unwrap_or(0);
        let mut bytes = Vec::with_capacity(count * width);
        if count == 0 {
            return bytes;
        }
        if self.is_contiguous() {
            bytes.extend_from_slice(&storage[self.offset * width..(self.offset + count) * width]);
            return bytes;
        }
        let mut index = vec![0usize; self.shape.len()];
        let mut position = self.offset;
        for _ in 0..count {
            bytes.extend_from_slice(&storage[position * width..(position + 1) * width]);
            // The odometer: the last dimension moves fastest.
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                position += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                position -= self.strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(offset: usize, shape: &[usize], strides: &[usize]) -> Layout {
        Layout {
            offset,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
        }
    }

    #[test]
    fn a_transposed_view_comes_out_in_its_own_order() {
        let storage = [0u8, 1, 2, 3, 4, 5, 6];
        let turned = layout(1, &[3, 2], &[1, 3]);
        assert_eq!(turned.end(), Some(7));
        assert_eq!(turned.gather(&storage, 1), [1, 4, 2, 5, 3, 6]);
        let expanded = layout(2, &[2, 2], &[0, 1]);
        assert_eq!(expanded.gather(&storage, 1), [2, 3, 2, 3]);
    }

    #[test]
    fn contiguity_ignores_dimensions_of_one_and_scalars_have_one_element() {
        assert!(layout(0, &[1, 4], &[99, 1]).is_contiguous());
        assert!(!layout(0, &[2, 4], &[5, 1]).is_contiguous());
        let scalar = layout(1, &[], &[]);
        assert_eq!((scalar.count(), scalar.end()), (Some(1), Some(2)));
        assert_eq!(scalar.gather(&[1, 2, 3, 4], 2), [3, 4]);
    }

    #[test]
    fn what_does_not_fit_a_word_is_noticed() {
        let huge = layout(0, &[usize::MAX, 2], &[1, 1]);
        assert_eq!(huge.count(), None);
        assert_eq!(layout(1, &[2], &[usize::MAX]).end(), None);
        assert_eq!(layout(0, &[0, usize::MAX], &[1, 1]).end(), Some(0));
    }
}
