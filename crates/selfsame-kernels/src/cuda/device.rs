//! Launches on a device, and tensors as the addresses that they take.
//!
//! candle keeps one stream for each device and thread: what is launched runs in that order, and
//! memory is freed in that order too. Nothing here waits for the device.
#![expect(unsafe_code, reason = "kernels take addresses")]

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, Error, Layout, Result, Shape, Storage, Tensor, bail,
};

use crate::gemm::Precision;

use super::launch::{Arg, Element, Launch, Source, Word};

/// Whether the kernels can run on this tensor: on a device, f32 or bf16, not empty, and in a place from
/// which they can read several elements at once.
pub(crate) fn takes(xs: &Tensor) -> bool {
    let is_known = element(xs.dtype()).is_ok();
    xs.device().is_cuda() && is_known && xs.elem_count() > 0 && is_aligned(xs)
}

/// Whether a tensor begins at a multiple of 16 bytes: the widest reads of a kernel. Whole tensors do;
/// views may begin anywhere. One that is not contiguous is copied before it is read.
pub(super) fn is_aligned(xs: &Tensor) -> bool {
    let start = xs.layout().start_offset() * xs.dtype().size_in_bytes();
    start.is_multiple_of(16) || !xs.is_contiguous()
}

/// Whether kernels for f32 alone can run on these tensors.
pub(crate) fn takes_f32(tensors: &[&Tensor]) -> bool {
    let mut all = tensors.iter();
    all.all(|tensor| takes(tensor) && tensor.dtype() == DType::F32)
}

/// The element type of activations.
pub(super) fn element(dtype: DType) -> Result<Element> {
    match dtype {
        DType::F32 => Ok(Element::F32),
        DType::BF16 => Ok(Element::Bf16),
        other => bail!("cuda: no kernel for {other:?}"),
    }
}

/// The type of factors of products in this precision.
impl From<Precision> for Element {
    fn from(precision: Precision) -> Element {
        match precision {
            Precision::F32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        }
    }
}

/// The same in candle's words.
pub(super) fn dtype(element: Element) -> DType {
    match element {
        Element::F32 => DType::F32,
        Element::Bf16 => DType::BF16,
    }
}

/// The PTX that the build script made.
fn ptx(source: Source) -> (&'static str, &'static str) {
    macro_rules! made {
        ($name:literal) => {
            (
                concat!("selfsame-", $name),
                include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
            )
        };
    }
    match source {
        Source::Attention => made!("attention"),
        Source::AttentionBf16 => made!("attention_bf16"),
        Source::BatchNorm => made!("batch_norm"),
        Source::Branch => made!("branch"),
        Source::ChannelsLast => made!("channels_last"),
        Source::Conv => made!("conv"),
        Source::Crops => made!("crops"),
        Source::Gelu => made!("gelu"),
        Source::LayerNorm => made!("layer_norm"),
        Source::Normalize => made!("normalize"),
        Source::Patches => made!("patches"),
        Source::Pool => made!("pool"),
        Source::Relu => made!("relu"),
        Source::Rounded => made!("rounded"),
        Source::RowNorm => made!("row_norm"),
        Source::RunningStats => made!("running_stats"),
        Source::Softmax => made!("softmax"),
        Source::Sums => made!("sums"),
        Source::Update => made!("update"),
    }
}

/// An address on the device.
pub(super) type Address = u64;

/// A contiguous tensor on a device, as kernels read it.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) device: &'a CudaDevice,
    pub(super) address: Address,
    pub(super) dtype: DType,
}

impl<'a> Input<'a> {
    /// # Errors
    /// If the layout is not contiguous or no kernel takes the type.
    pub(super) fn new(storage: &'a CudaStorage, layout: &Layout) -> Result<Self> {
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("expected a contiguous tensor, got {layout:?}")
        };
        let dtype = storage.dtype();
        Ok(Input {
            device: &storage.device,
            address: address(storage)? + (start * dtype.size_in_bytes()) as u64,
            dtype,
        })
    }

    pub(super) fn element(&self) -> Result<Element> {
        element(self.dtype)
    }

    /// The address, if the elements are f32.
    pub(super) fn f32(&self) -> Result<Address> {
        match self.dtype {
            DType::F32 => Ok(self.address),
            other => bail!("cuda: expected f32, got {other:?}"),
        }
    }

    /// The address, if the elements are of this type.
    pub(super) fn of(&self, element: Element) -> Result<Address> {
        if self.element()? != element {
            bail!("cuda: expected {element:?}, got {:?}", self.dtype);
        }
        Ok(self.address)
    }
}

/// Where a storage begins. The events that cudarc keeps for other streams are not needed: whoever
/// writes on another stream makes this one wait.
fn address(storage: &CudaStorage) -> Result<Address> {
    let stream = storage.device.cuda_stream();
    match &storage.slice {
        CudaStorageSlice::U8(slice) => Ok(slice.device_ptr(&stream).0),
        CudaStorageSlice::I64(slice) => Ok(slice.device_ptr(&stream).0),
        CudaStorageSlice::F32(slice) => Ok(slice.device_ptr(&stream).0),
        CudaStorageSlice::F64(slice) => Ok(slice.device_ptr(&stream).0),
        CudaStorageSlice::BF16(slice) => Ok(slice.device_ptr(&stream).0),
        _ => bail!("cuda: no kernel for {:?}", storage.dtype()),
    }
}

/// Runs `f` on contiguous tensors of one device.
pub(super) fn with_inputs<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([Input<'_>; N]) -> Result<R>,
) -> Result<R> {
    let mut contiguous = Vec::with_capacity(N);
    for tensor in tensors {
        contiguous.push(tensor.contiguous()?);
    }
    let stored: Vec<_> = contiguous.iter().map(Tensor::storage_and_layout).collect();
    let mut inputs = Vec::with_capacity(N);
    for (storage, layout) in &stored {
        match &**storage {
            Storage::Cuda(storage) => inputs.push(Input::new(storage, layout)?),
            _ => bail!("expected a tensor on a cuda device"),
        }
    }
    match <[Input<'_>; N]>::try_from(inputs) {
        Ok(inputs) => f(inputs),
        Err(_) => bail!("an input is missing"),
    }
}

/// Where a contiguous tensor lies, for as long as the caller keeps it.
pub(super) fn address_of(tensor: &Tensor) -> Result<Address> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => Ok(Input::new(storage, layout)?.address),
        _ => bail!("expected a tensor on a cuda device"),
    }
}

/// A table on the device.
pub(super) fn words_on(device: &CudaDevice, words: &[Word<Address>]) -> Result<Tensor> {
    let as_i64 = |word: &Word<Address>| match *word {
        Word::Place(address) => address as i64,
        Word::Value(value) => value as i64,
    };
    let words: Vec<i64> = words.iter().map(as_i64).collect();
    let num_words = words.len();
    let words = device.storage_from_cpu_storage_owned(CpuStorage::I64(words))?;
    Ok(Tensor::from_storage(
        Storage::Cuda(words),
        num_words,
        BackpropOp::none(),
        false,
    ))
}

/// Memory that a launch writes.
pub(super) struct Output {
    pub(super) storage: CudaStorage,
    pub(super) address: Address,
}

impl Output {
    /// Memory for so many elements, all of which a kernel must write.
    pub(super) fn new(device: &CudaDevice, dtype: DType, len: usize) -> Result<Output> {
        // SAFETY: the caller's launch writes every element before anything can read one, as the
        // stream runs in order; the emulation's tests fill such memory with NaN to see that it does.
        let storage = unsafe { device.alloc_uninit(&Shape::from(len), dtype)? };
        let address = address(&storage)?;
        Ok(Output { storage, address })
    }

    /// Memory for so many zeros.
    pub(super) fn zeros(device: &CudaDevice, dtype: DType, len: usize) -> Result<Output> {
        let storage = device.zeros_impl(&Shape::from(len), dtype)?;
        let address = address(&storage)?;
        Ok(Output { storage, address })
    }

    /// A tensor without a graph.
    pub(super) fn tensor(self, shape: impl Into<Shape>) -> Tensor {
        let storage = Storage::Cuda(self.storage);
        Tensor::from_storage(storage, shape, BackpropOp::none(), false)
    }
}

/// Loads one kernel, to see whether the driver takes them.
pub(super) fn load(device: &CudaDevice) -> Result<()> {
    let (module, ptx) = ptx(Source::Relu);
    device.get_or_load_custom_func("relu_f32", module, ptx)?;
    Ok(())
}

/// Memory of a block that a function may have without being told.
const SHARED_BYTES: u32 = 48 * 1024;

/// Launches a kernel and does not wait for it.
pub(super) fn run(device: &CudaDevice, launch: &Launch<Address>) -> Result<()> {
    let (module, ptx) = ptx(launch.source);
    let function = device.get_or_load_custom_func(launch.kernel, module, ptx)?;
    let mut builder = function.builder();
    for arg in &launch.args {
        match arg {
            Arg::Pointer(address) => builder.arg(address),
            Arg::Null => builder.arg(&0u64),
            Arg::U32(value) => builder.arg(value),
            Arg::F32(value) => builder.arg(value),
        };
    }
    if launch.shared_bytes > SHARED_BYTES {
        let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = i32::try_from(launch.shared_bytes).map_err(Error::wrap)?;
        function.set_attribute(attribute, bytes).w()?;
    }
    let config = LaunchConfig {
        grid_dim: (launch.grid[0], launch.grid[1], 1),
        block_dim: (launch.block[0], launch.block[1], 1),
        shared_mem_bytes: launch.shared_bytes,
    };
    // SAFETY: kinds and number of the arguments, and that the kernel stays within buffers of the
    // sizes that the ops allocate, is what the tests in `emulated` check for these very launches.
    // The addresses belong to storages that their callers borrow; freed memory is handed out again
    // only behind this launch on the same stream.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}
