//! Products of whole matrices that lie row by row.

use candle_core::{CudaDevice, Result};

use super::device::Address;
use super::launch::{Element, Factor, Product, size};
use super::product;

/// A matrix row by row.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) address: Address,
    /// Elements from row to row.
    pub(super) stride: usize,
    /// Whether its transpose is meant.
    pub(super) is_transposed: bool,
}

impl Matrix {
    pub(super) fn new(address: Address, stride: usize) -> Matrix {
        Matrix {
            address,
            stride,
            is_transposed: false,
        }
    }

    pub(super) fn t(self) -> Matrix {
        Matrix {
            is_transposed: !self.is_transposed,
            ..self
        }
    }

    fn factor(self, element: Element) -> Result<Factor<Address>> {
        Ok(Factor {
            place: self.address,
            start: 0,
            ld: size(self.stride)?,
            step: 0,
            transposed: self.is_transposed,
            element,
        })
    }
}

/// Rows and columns of a product and the length of its sums.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) inner: usize,
}

/// `to = a · b`; sums are taken in f32, with factors rounded to TF32 only where candle is set so.
///
/// `element` is the type of the factors, `to_element` that of the result.
///
/// # Errors
/// If a size is too large for cuBLAS, or what cuBLAS says.
pub(super) fn multiply(
    device: &CudaDevice,
    sizes: Sizes,
    element: Element,
    [a, b]: [Matrix; 2],
    to: Matrix,
    to_element: Element,
) -> Result<()> {
    let product = Product {
        rows: size(sizes.rows)?,
        cols: size(sizes.columns)?,
        inner: size(sizes.inner)?,
        batch: 1,
        left: a.factor(element)?,
        right: b.factor(element)?,
        result: to.factor(to_element)?,
        add: false,
    };
    product::multiply(device, &product)
}
