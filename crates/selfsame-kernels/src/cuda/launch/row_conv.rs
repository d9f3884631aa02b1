//! Convolution of images whose channels lie side by side: their windows as rows of a matrix, its
//! products with weights, and weights as matrices that fit.
//!
//! 1×1 convolutions without a stride are products of the images as they are.

use super::conv::{ConvStep, Factor, Product, Room, Target, Windows};
use super::{Arg, Element, Launch, MAX_GRID_Y, Source, Word, size};
use candle_core::{Result, bail};

const THREADS: u32 = 256;
/// Channels that a thread does (`EIGHT` in eight.cuh).
pub(crate) const EIGHT: usize = 8;
/// Bytes of windows that are held at a time. What stays in the cache of a large GPU, 32 MiB, makes a
/// step of ResNet-50 on an H100 0.8 % slower: its products are smaller and more.
const WINDOW_BYTES: usize = 96 << 20;
/// Blocks of a weight.
const BLOCKS: u32 = 64;

/// What a convolution reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Images {
    /// `[B, C, H, W]`, f32.
    Planes,
    /// `[B, H, W, C]`, a multiple of [`EIGHT`] channels.
    Rows,
}

/// A convolution of images whose windows become rows of a matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowConv {
    /// Of rows and of the products' factors.
    pub(crate) element: Element,
    pub(crate) images: Images,
    pub(crate) batch: u32,
    pub(crate) outputs: u32,
    pub(crate) windows: Windows,
}

impl RowConv {
    /// `xs`: `[B, C, H, W]` and `weight`: `[O, C, kh, kw]` whatever their order in memory, `output`:
    /// `[h_out, w_out]`.
    ///
    /// # Errors
    /// If a number of channels is no multiple of [`EIGHT`], or a size is more than kernels count.
    pub(crate) fn new(
        element: Element,
        images: Images,
        [batch, channels, h, w]: [usize; 4],
        [outputs, _, kh, kw]: [usize; 4],
        output: [usize; 2],
        [stride, padding]: [usize; 2],
    ) -> Result<RowConv> {
        let conv = RowConv {
            element,
            images,
            batch: size(batch)?,
            outputs: size(outputs)?,
            windows: Windows {
                channels: size(channels)?,
                input: [size(h)?, size(w)?],
                kernel: [size(kh)?, size(kw)?],
                output: [size(output[0])?, size(output[1])?],
                stride: size(stride)?,
                padding: u32::try_from(padding)?,
            },
        };
        let of_rows = images == Images::Rows && !channels.is_multiple_of(EIGHT);
        if of_rows || !outputs.is_multiple_of(EIGHT) || padding >= 1 << 16 {
            bail!("cuda: no convolution of rows of {channels} to {outputs} channels");
        }
        // Threads over all positions, elements of a weight, and rows of a group.
        let (positions, windows) = (h * w, output[0] * output[1]);
        size(batch * positions * channels.div_ceil(EIGHT) + THREADS as usize)?;
        size(batch * windows * outputs / EIGHT + THREADS as usize)?;
        size(outputs * conv.ld())?;
        size(conv.images_a_group() * windows * conv.ld() / EIGHT + THREADS as usize)?;
        Ok(conv)
    }

    /// Elements of a row of windows, and of the matrix that its weight becomes.
    pub(crate) fn ld(&self) -> usize {
        let [kh, kw] = self.windows.kernel;
        (self.windows.channels as usize * (kh * kw) as usize).next_multiple_of(EIGHT)
    }

    /// Windows of an image.
    fn count(&self) -> usize {
        (self.windows.output[0] * self.windows.output[1]) as usize
    }

    /// Positions that come out.
    pub(crate) fn rows(&self) -> usize {
        self.batch as usize * self.count()
    }

    /// Elements of the input.
    pub(crate) fn input_len(&self) -> usize {
        let Windows {
            channels,
            input: [h, w],
            ..
        } = self.windows;
        self.batch as usize * channels as usize * h as usize * w as usize
    }

    /// Elements of the result.
    pub(crate) fn output_len(&self) -> usize {
        self.rows() * self.outputs as usize
    }

    /// Whether the windows are the positions themselves.
    pub(crate) fn is_pointwise(&self) -> bool {
        let windows = &self.windows;
        self.images == Images::Rows
            && (windows.kernel, windows.stride, windows.padding) == ([1, 1], 1, 0)
    }

    /// Whether the weight's matrix is the weight as it is, but for its type.
    pub(crate) fn has_plain_matrix(&self) -> bool {
        let is_in_order = self.images == Images::Planes || self.windows.kernel == [1, 1];
        let [kh, kw] = self.windows.kernel;
        is_in_order && self.ld() == (self.windows.channels * kh * kw) as usize
    }

    fn images_a_group(&self) -> usize {
        let row = self.ld() * self.element.bytes() as usize;
        (WINDOW_BYTES / (row * self.count())).clamp(1, self.batch as usize)
    }

    /// Images whose windows are held at a time, as (first, count).
    pub(crate) fn groups(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        let (step, batch) = (self.images_a_group() as u32, self.batch);
        let first = (0..batch).step_by(step as usize);
        first.map(move |first| (first, step.min(batch - first)))
    }

    /// Elements of the windows of the largest group.
    pub(crate) fn windows_len(&self) -> usize {
        self.images_a_group() * self.count() * self.ld()
    }

    /// The windows of a group of images, `[count·windows, ld]`.
    pub(crate) fn gather<P>(
        &self,
        [images, rows]: [P; 2],
        (first, count): (u32, u32),
    ) -> Launch<P> {
        let windows = count * self.count() as u32;
        match self.images {
            Images::Planes => {
                let kernel = self
                    .element
                    .pick("windows_of_planes_f32", "windows_of_planes_bf16");
                let ld = self.ld() as u32;
                let threads = windows * (ld / EIGHT as u32);
                let mut launch = self.launch(kernel, threads, [images, rows], [first, count]);
                launch.args.push(Arg::U32(ld));
                launch
            }
            Images::Rows => {
                let kernel = self
                    .element
                    .pick("windows_of_rows_f32", "windows_of_rows_bf16");
                self.launch(
                    kernel,
                    windows * self.vectors(),
                    [images, rows],
                    [first, count],
                )
            }
        }
    }

    /// The transpose for rows: sums over the windows that hold an element.
    pub(crate) fn add_up<P>(
        &self,
        rows: P,
        images: Target<P>,
        (first, count): (u32, u32),
    ) -> Launch<P> {
        let kernel = self
            .element
            .pick("rows_of_windows_f32", "rows_of_windows_bf16");
        let [h, w] = self.windows.input;
        let threads = count * h * w * self.vectors();
        let mut launch = self.launch(kernel, threads, [rows, images.place], [first, count]);
        launch.args.push(Arg::U32(images.add.into()));
        launch
    }

    /// A matrix of rows as wide as they are apart, from number `first` on.
    fn matrix<P>(place: P, element: Element, width: usize, first: usize) -> Factor<P> {
        Factor {
            start: first * width,
            ..Factor::new(place, element, width as u32)
        }
    }

    /// `ys` = the convolution of `xs` by a weight as matrix.
    pub(crate) fn forward<P: Copy>(
        &self,
        [xs, weight]: [P; 2],
        ys: P,
        room: Room<'_, P>,
    ) -> Result<Vec<ConvStep<P>>> {
        let (element, ld, width) = (self.element, self.ld(), self.outputs as usize);
        let product = |rows: usize, left, first| {
            ConvStep::Product(Product {
                rows: rows as u32,
                cols: self.outputs,
                inner: ld as u32,
                batch: 1,
                left,
                right: Self::matrix(weight, element, ld, 0).t(),
                result: Self::matrix(ys, element, width, first),
                add: false,
            })
        };
        if self.is_pointwise() {
            let left = Self::matrix(xs, element, ld, 0);
            return Ok(vec![product(self.rows(), left, 0)]);
        }
        let (windows, mut steps) = (room(element, self.windows_len())?, Vec::new());
        for group in self.groups() {
            let (first, count) = (group.0 as usize, group.1 as usize);
            steps.push(ConvStep::Launch(self.gather([xs, windows], group)));
            let left = Self::matrix(windows, element, ld, 0);
            steps.push(product(count * self.count(), left, first * self.count()));
        }
        Ok(steps)
    }

    /// From the gradient of the result: that of `xs`, which must be rows, and the f32 one of the
    /// weight's matrix, each if there is a place for it.
    pub(crate) fn backward<P: Copy>(
        &self,
        [xs, weight, grad]: [P; 3],
        dx: Option<Target<P>>,
        dw: Option<P>,
        room: Room<'_, P>,
    ) -> Result<Vec<ConvStep<P>>> {
        if self.images == Images::Planes && dx.is_some() {
            bail!("cuda: planes have no gradient here");
        }
        let (element, ld, width) = (self.element, self.ld(), self.outputs as usize);
        let of_weight = |dw, rows: usize, windows, first: usize| {
            ConvStep::Product(Product {
                rows: self.outputs,
                cols: ld as u32,
                inner: rows as u32,
                batch: 1,
                left: Self::matrix(grad, element, width, first).t(),
                right: Self::matrix(windows, element, ld, 0),
                result: Self::matrix(dw, Element::F32, ld, 0),
                add: first > 0,
            })
        };
        let of_windows = |windows: Target<P>, rows: usize, first| {
            ConvStep::Product(Product {
                rows: rows as u32,
                cols: ld as u32,
                inner: self.outputs,
                batch: 1,
                left: Self::matrix(grad, element, width, first),
                right: Self::matrix(weight, element, ld, 0),
                result: Self::matrix(windows.place, element, ld, 0),
                add: windows.add,
            })
        };
        let mut steps = Vec::new();
        if self.is_pointwise() {
            steps.extend(dw.map(|dw| of_weight(dw, self.rows(), xs, 0)));
            steps.extend(dx.map(|dx| of_windows(dx, self.rows(), 0)));
            return Ok(steps);
        }
        let windows = room(element, self.windows_len())?;
        for group in self.groups() {
            let rows = group.1 as usize * self.count();
            let first = group.0 as usize * self.count();
            if let Some(dw) = dw {
                steps.push(ConvStep::Launch(self.gather([xs, windows], group)));
                steps.push(of_weight(dw, rows, windows, first));
            }
            if let Some(dx) = dx {
                steps.push(of_windows(Target::new(windows), rows, first));
                steps.push(ConvStep::Launch(self.add_up(windows, dx, group)));
            }
        }
        Ok(steps)
    }

    fn vectors(&self) -> u32 {
        self.windows.channels / EIGHT as u32
    }

    fn launch<P, const N: usize>(
        &self,
        kernel: &'static str,
        threads: u32,
        places: [P; 2],
        counts: [u32; N],
    ) -> Launch<P> {
        let mut args: Vec<_> = places.map(Arg::Pointer).into();
        args.extend(counts.map(Arg::U32));
        args.extend(self.windows.args());
        by_threads(kernel, threads, args)
    }
}

pub(super) fn by_threads<P>(kernel: &'static str, threads: u32, args: Vec<Arg<P>>) -> Launch<P> {
    Launch {
        source: Source::ChannelsLast,
        kernel,
        grid: [threads.div_ceil(THREADS), 1],
        block: [THREADS, 1],
        shared_bytes: 0,
        args,
    }
}

/// A weight `[O, C, kh, kw]` and the matrix of its convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowWeight<P> {
    pub(crate) plain: P,
    pub(crate) matrix: P,
}

/// As `struct Weight` of channels_last.cu lays it out.
pub(crate) fn weight_table<P: Copy>(weights: &[(RowConv, RowWeight<P>)]) -> Vec<Word<P>> {
    let two = |low: u32, high: u32| Word::Value(u64::from(low) | u64::from(high) << 32);
    let mut words = Vec::new();
    for (conv, weight) in weights {
        let [kh, kw] = conv.windows.kernel;
        words.extend([
            Word::Place(weight.plain),
            Word::Place(weight.matrix),
            two(conv.outputs, conv.windows.channels),
            two(kh * kw, conv.ld() as u32),
            Word::Value((conv.images == Images::Planes).into()),
        ]);
    }
    words
}

/// All weights of the table to matrices of this type.
pub(crate) fn weights_to_matrices<P>(
    element: Element,
    table: P,
    count: usize,
) -> Result<Launch<P>> {
    let kernel = element.pick("weights_to_matrices_f32", "weights_to_matrices_bf16");
    by_weights(kernel, table, count)
}

/// Gradients of weights from those of their matrices, which are f32.
pub(crate) fn weights_from_matrices<P>(table: P, count: usize) -> Result<Launch<P>> {
    by_weights("weights_from_matrices", table, count)
}

fn by_weights<P>(kernel: &'static str, table: P, count: usize) -> Result<Launch<P>> {
    if count == 0 || count > MAX_GRID_Y as usize {
        bail!("cuda: {count} weights of convolutions");
    }
    Ok(Launch {
        source: Source::ChannelsLast,
        kernel,
        grid: [BLOCKS, count as u32],
        block: [THREADS, 1],
        shared_bytes: 0,
        args: vec![Arg::Pointer(table)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conv(side: usize, channels: usize, kernel: usize) -> RowConv {
        let shape = [128, channels, side, side];
        let weight = [channels, channels, kernel, kernel];
        let geometry = [1, kernel / 2];
        let output = [side; 2];
        RowConv::new(Element::Bf16, Images::Rows, shape, weight, output, geometry).unwrap()
    }

    #[test]
    fn windows_are_held_for_as_many_images_as_fit() {
        let wide = conv(56, 64, 3);
        let groups: Vec<_> = wide.groups().collect();
        // 3,136 rows of 1,152 bytes for each image.
        assert_eq!(groups[..2], [(0, 27), (27, 27)]);
        assert_eq!(groups.iter().map(|(_, count)| count).sum::<u32>(), 128);
        assert!(2 * wide.windows_len() <= WINDOW_BYTES);
        assert_eq!(
            wide.gather([0, 1], groups[0]).grid,
            [27 * 3136 * 8 / 256, 1]
        );
        // Few positions of many channels: all at once, for the sake of the products.
        assert_eq!(conv(7, 512, 3).groups().collect::<Vec<_>>(), [(0, 128)]);
        assert!(conv(7, 512, 1).is_pointwise() && !wide.is_pointwise());
    }

    #[test]
    fn rows_of_planes_are_padded_and_odd_channels_refused() {
        let new = |images, from, to| {
            let weight = [to, from, 7, 7];
            RowConv::new(
                Element::F32,
                images,
                [2, from, 32, 32],
                weight,
                [16; 2],
                [2, 3],
            )
        };
        let padded = new(Images::Planes, 3, 64).unwrap();
        assert_eq!(padded.ld(), 152);
        assert!(!padded.has_plain_matrix() && conv(7, 512, 1).has_plain_matrix());
        assert!(!conv(7, 512, 3).has_plain_matrix());
        assert!(new(Images::Rows, 3, 64).is_err());
        assert!(new(Images::Planes, 3, 60).is_err());
    }
}
