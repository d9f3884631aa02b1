//! From candle tensors to slices and back, and loops over fixed chunks of them.
//!
//! Chunks depend on sizes only, never on the number of threads, and partial sums are added in the
//! order of the chunks: every result has the same bits for any number of threads.
#![expect(
    unsafe_code,
    reason = "buffers that are written once instead of zeroed first"
)]

use candle_core::{
    CpuStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Storage, Tensor, bail,
};
use rayon::prelude::*;
use std::cell::Cell;
use std::mem::MaybeUninit;

/// Elements per chunk of cheap loops: big enough to hide the hand-over to another thread.
pub(crate) const CHUNK: usize = 1 << 14;

/// Most partial sums that one reduction over rows is split into.
const MAX_PARTIAL_SUMS: usize = 16;

/// Whether the fused kernels can run on these tensors: f32, on the CPU, not empty.
pub(crate) fn fused(tensors: &[&Tensor]) -> bool {
    tensors
        .iter()
        .all(|t| matches!(t.device(), Device::Cpu) && t.dtype() == DType::F32 && t.elem_count() > 0)
}

/// The elements of a contiguous f32 storage, as a custom op gets it.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        (CpuStorage::F32(_), None) => bail!("expected a contiguous tensor, got {layout:?}"),
        _ => bail!("expected f32"),
    }
}

/// Runs `f` on the elements of a contiguous f32 tensor on the CPU.
pub(crate) fn with_slice<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(slice(storage, layout)?),
        _ => bail!("expected a tensor on the cpu"),
    }
}

/// The same with any number of tensors at once.
pub(crate) fn with_slices<R>(
    tensors: &[&Tensor],
    f: impl FnOnce(&[&[f32]]) -> Result<R>,
) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|t| t.storage_and_layout()).collect();
    let slices = guards.iter().map(|(storage, layout)| match &**storage {
        Storage::Cpu(storage) => slice(storage, layout),
        _ => bail!("expected all tensors on the cpu"),
    });
    f(&slices.collect::<Result<Vec<_>>>()?)
}

/// Hands the elements to a closure, through candle's in-place operations.
struct Edit<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for Edit<F> {
    fn name(&self) -> &'static str {
        "edit"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match (storage, layout.contiguous_offsets(), self.0.take()) {
            (CpuStorage::F32(data), Some((start, end)), Some(edit)) => edit(&mut data[start..end]),
            _ => bail!("an in-place update needs a contiguous f32 tensor, got {layout:?}"),
        }
    }
}

/// Runs `f` on the elements of a contiguous f32 tensor on the CPU, which it may change.
///
/// Everybody who shares the storage sees the change; the storage is locked meanwhile.
pub(crate) fn with_slice_mut(
    tensor: &Tensor,
    f: impl FnOnce(&mut [f32]) -> Result<()>,
) -> Result<()> {
    tensor.inplace_op1(&Edit(Cell::new(Some(f))))
}

/// A place that tells storages apart: equal for tensors that share one.
pub(crate) fn storage_address(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    std::ptr::from_ref::<Storage>(&storage).addr()
}

/// A tensor on the CPU that takes over `data`.
pub(crate) fn tensor(data: Vec<f32>, shape: &Shape) -> Result<Tensor> {
    Tensor::from_vec(data, shape, &Device::Cpu)
}

/// A vector of `len` elements, all of which `fill` must write.
///
/// # Safety
/// `fill` has initialised every element of the slice when it returns.
pub(crate) unsafe fn written_by(
    len: usize,
    fill: impl FnOnce(&mut [MaybeUninit<f32>]),
) -> Vec<f32> {
    let mut data = Vec::with_capacity(len);
    fill(&mut data.spare_capacity_mut()[..len]);
    // SAFETY: the capacity is at least `len`, and the caller promises that `fill` wrote all of it.
    unsafe { data.set_len(len) };
    data
}

/// A vector of `len` elements, zeros until `fill` writes them.
pub(crate) fn written(len: usize, fill: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut data = vec![0f32; len];
    fill(&mut data);
    data
}

/// Numbers that a kernel writes over, as the unwritten ones that it takes.
///
/// # Safety
/// Nothing but numbers is written to the slice: none of its elements becomes uninitialised.
pub(crate) unsafe fn as_uninit(data: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: the layouts are equal, and the caller promises that every element stays a number.
    unsafe { &mut *(std::ptr::from_mut(data) as *mut [MaybeUninit<f32>]) }
}

/// Calls `f(index, chunk)` for all chunks of `chunk` elements, in parallel.
pub(crate) fn for_each_chunk<T: Send>(
    data: &mut [T],
    chunk: usize,
    f: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    let chunk = chunk.max(1);
    if data.len() <= chunk {
        if !data.is_empty() {
            f(0, data);
        }
    } else {
        data.par_chunks_mut(chunk)
            .enumerate()
            .for_each(|(i, part)| f(i, part));
    }
}

/// Rows of `width` elements that make about [`CHUNK`] elements.
pub(crate) fn rows_per_chunk(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// Rows per partial sum of a reduction over `rows` rows of `width`.
pub(crate) fn rows_per_sum(rows: usize, width: usize) -> usize {
    rows.div_ceil(MAX_PARTIAL_SUMS).max(rows_per_chunk(width))
}

/// `[width]` sums over rows: `f(first_row, row_end, sums)` adds the rows' share to zeroed sums.
pub(crate) fn sum_over_rows(
    rows: usize,
    row_width: usize,
    width: usize,
    f: impl Fn(usize, usize, &mut [f32]) + Sync + Send,
) -> Vec<f32> {
    let step = rows_per_sum(rows, row_width);
    let mut partial = vec![0f32; rows.div_ceil(step).max(1) * width];
    for_each_chunk(&mut partial, width, |i, sums| {
        f(i * step, rows.min((i + 1) * step), sums)
    });
    add_partial_sums(partial, width)
}

/// Adds the later partial sums, in order, to the first and returns it.
pub(crate) fn add_partial_sums(mut partial: Vec<f32>, width: usize) -> Vec<f32> {
    let (sums, rest) = partial.split_at_mut(width);
    for part in rest.chunks_exact(width) {
        for (sum, x) in sums.iter_mut().zip(part) {
            *sum += x;
        }
    }
    partial.truncate(width);
    partial
}
