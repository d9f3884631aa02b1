//! Convolution as matrix products over columns, forward and backward.
//!
//! Columns of some images at a time are `[C·kh·kw, images·windows]`, so that one product does all of
//! them, whatever the size of an image. Where images have many windows, the product is made image by
//! image (batched, in one call) and its result is where it belongs; where they have few, in one
//! piece, and images and channels are transposed afterwards, which costs two passes over a small
//! result instead of most of each tile.

use super::{Arg, Element, Launch, MAX_GRID_Y, Source, size};
use candle_core::{Result, bail};

const THREADS: u32 = 256;
/// Channels that a thread of im2col and col2im does (`CHANNELS` in conv.cu).
const CHANNELS: u32 = 8;
/// Bytes of columns that are held at a time.
const COLUMN_BYTES: usize = 256 << 20;
/// Rows of columns begin at multiples of so many elements, as tensor cores want them.
const ALIGNED: u32 = 8;
/// From so many windows on an image fills a product's tiles.
const MANY_WINDOWS: u32 = 256;

/// The windows of images of `[channels, input]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    pub(crate) channels: u32,
    pub(crate) input: [u32; 2],
    pub(crate) kernel: [u32; 2],
    pub(crate) output: [u32; 2],
    pub(crate) stride: u32,
    pub(crate) padding: u32,
}

impl Windows {
    /// `channels` rows of `len` elements, each of which is a window.
    fn of_elements(channels: u32, len: u32) -> Windows {
        Windows {
            channels,
            input: [1, len],
            kernel: [1, 1],
            output: [1, len],
            stride: 1,
            padding: 0,
        }
    }

    fn are_elements(&self) -> bool {
        (self.kernel, self.stride, self.padding) == ([1, 1], 1, 0)
    }

    /// Windows of an image.
    fn count(&self) -> u32 {
        self.output[0] * self.output[1]
    }

    /// Elements of a window.
    fn len(&self) -> u32 {
        self.channels * self.kernel[0] * self.kernel[1]
    }

    fn image_len(&self) -> u32 {
        self.channels * self.input[0] * self.input[1]
    }

    /// Elements from one row of the columns of some images to the next.
    fn ld(&self, images: u32) -> u32 {
        (images * self.count()).next_multiple_of(ALIGNED)
    }

    /// As `struct Windows` of windows.cuh has them.
    pub(super) fn args<P>(&self) -> impl Iterator<Item = Arg<P>> + use<P> {
        let [[h, w], [kh, kw], [h_out, w_out]] = [self.input, self.kernel, self.output];
        let (channels, stride, padding) = (self.channels, self.stride, self.padding);
        let sizes = [channels, h, w, kh, kw, h_out, w_out, stride, padding];
        sizes.into_iter().map(Arg::U32)
    }

    /// The windows of `count` images from number `first` on become columns.
    pub(crate) fn gather<P>(
        &self,
        to: Element,
        [images, columns]: [P; 2],
        first: u32,
        count: u32,
    ) -> Launch<P> {
        let kernel = to.pick("im2col_f32", "im2col_bf16");
        self.launch(kernel, self.ld(count), [images, columns], first, count)
    }

    /// The transpose: images become sums over the windows that hold an element.
    pub(crate) fn add_up<P>(
        &self,
        from: Element,
        columns: P,
        images: Target<P>,
        first: u32,
        count: u32,
    ) -> Launch<P> {
        let kernel = from.pick("col2im_f32", "col2im_bf16");
        let threads = count * self.input[0] * self.input[1];
        let places = [columns, images.place];
        let mut launch = self.launch(kernel, threads, places, first, count);
        launch.args.push(Arg::U32(images.add.into()));
        launch
    }

    fn launch<P>(
        &self,
        kernel: &'static str,
        threads: u32,
        places: [P; 2],
        first: u32,
        count: u32,
    ) -> Launch<P> {
        let mut args: Vec<_> = places.map(Arg::Pointer).into();
        args.extend([first, count, self.ld(count)].map(Arg::U32));
        args.extend(self.args());
        Launch {
            source: Source::Conv,
            kernel,
            grid: [threads.div_ceil(THREADS), self.channels.div_ceil(CHANNELS)],
            block: [THREADS, 1],
            shared_bytes: 0,
            args,
        }
    }
}

/// Where a result goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target<P> {
    pub(crate) place: P,
    /// Whether it is added to what is there.
    pub(crate) add: bool,
}

impl<P> Target<P> {
    /// A place that is overwritten.
    pub(crate) fn new(place: P) -> Target<P> {
        Target { place, add: false }
    }
}

/// A matrix, or one for each member of a batch: rows of a buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Factor<P> {
    pub(crate) place: P,
    pub(crate) element: Element,
    /// Where the matrix begins, in elements.
    pub(crate) start: usize,
    /// Elements from one stored row to the next.
    pub(crate) ld: u32,
    /// Elements from one member of the batch to the next.
    pub(crate) step: usize,
    /// Whether the stored rows are columns of the factor.
    pub(crate) transposed: bool,
}

impl<P> Factor<P> {
    /// One matrix from the beginning of a buffer on.
    pub(super) fn new(place: P, element: Element, ld: u32) -> Factor<P> {
        Factor {
            place,
            element,
            start: 0,
            ld,
            step: 0,
            transposed: false,
        }
    }

    pub(super) fn t(self) -> Factor<P> {
        Factor {
            transposed: !self.transposed,
            ..self
        }
    }
}

/// `result [rows, cols] = left · right`, added to what is there if `add`; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Product<P> {
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    pub(crate) inner: u32,
    pub(crate) batch: u32,
    pub(crate) left: Factor<P>,
    pub(crate) right: Factor<P>,
    pub(crate) result: Factor<P>,
    pub(crate) add: bool,
}

/// What is done on the device, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ConvStep<P> {
    Launch(Launch<P>),
    Product(Product<P>),
}

/// Asks for room for so many elements.
pub(crate) type Room<'a, P> = &'a mut dyn FnMut(Element, usize) -> Result<P>;

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conv {
    /// Type of the products' factors. Images, results, weights and all gradients are f32.
    factors: Element,
    batch: u32,
    outputs: u32,
    windows: Windows,
}

impl Conv {
    /// `xs`: `[B, C, H, W]`, `weight`: `[O, C, kh, kw]`, `output`: `[h_out, w_out]`.
    pub(crate) fn new(
        factors: Element,
        xs: [usize; 4],
        weight: [usize; 4],
        output: [usize; 2],
        [stride, padding]: [usize; 2],
    ) -> Result<Conv> {
        let [batch, channels, h, w] = xs;
        let [outputs, _, kh, kw] = weight;
        for sizes in [
            // An image, its windows, its columns, and columns with the result's.
            channels * h * w,
            outputs * output[0] * output[1],
            output[0] * output[1] * channels * kh * kw,
            channels * kh * kw * outputs,
            // Places in all images, and in all results.
            (batch * h * w).next_multiple_of(256),
            (batch * output[0] * output[1]).next_multiple_of(256),
        ] {
            size(sizes)?;
        }
        if channels.max(outputs) > (MAX_GRID_Y * CHANNELS) as usize || padding >= 1 << 16 {
            bail!("cuda: no convolution of {channels} to {outputs} channels, padding {padding}");
        }
        let pair = |[a, b]: [usize; 2]| Ok::<_, candle_core::Error>([size(a)?, size(b)?]);
        Ok(Conv {
            factors,
            batch: size(batch)?,
            outputs: size(outputs)?,
            windows: Windows {
                channels: size(channels)?,
                input: pair([h, w])?,
                kernel: pair([kh, kw])?,
                output: pair(output)?,
                stride: size(stride)?,
                padding: padding as u32,
            },
        })
    }

    /// The result as windows of one element.
    fn results(&self) -> Windows {
        Windows::of_elements(self.outputs, self.windows.count())
    }

    /// Whether products are made image by image. Their parts of the columns are aligned then.
    fn is_by_image(&self) -> bool {
        let count = self.windows.count();
        count >= MANY_WINDOWS && count.is_multiple_of(ALIGNED)
    }

    /// Images of each group, as (first, count).
    fn groups(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        let windows = self.windows.count() as usize;
        let columns = self.windows.len() as usize * self.factors.bytes() as usize;
        let bytes = windows * columns.max(4 * self.outputs as usize);
        let step = (COLUMN_BYTES / bytes).clamp(1, self.batch as usize) as u32;
        let batch = self.batch;
        (0..batch)
            .step_by(step as usize)
            .map(move |first| (first, step.min(batch - first)))
    }

    /// Elements of columns of `height` rows for the largest group.
    fn room_for(&self, height: u32) -> usize {
        let (_, count) = self.groups().next().unwrap_or_default();
        height as usize * self.windows.ld(count) as usize
    }

    /// The weight `[O, C·kh·kw]` as a factor, rounded if need be.
    fn weight<P: Copy>(
        &self,
        weight: P,
        room: Room<'_, P>,
        steps: &mut Vec<ConvStep<P>>,
    ) -> Result<Factor<P>> {
        let len = self.windows.len();
        if self.factors == Element::F32 {
            return Ok(Factor::new(weight, Element::F32, len));
        }
        let rows = Windows::of_elements(self.outputs, len);
        let ld = rows.ld(1);
        let rounded = room(self.factors, self.outputs as usize * ld as usize)?;
        let launch = rows.gather(self.factors, [weight, rounded], 0, 1);
        steps.push(ConvStep::Launch(launch));
        Ok(Factor::new(rounded, self.factors, ld))
    }

    /// Images from number `first` on, one for each member of a batch.
    fn images<P>(&self, place: P, of: Windows, first: u32) -> Factor<P> {
        let image_len = of.image_len() as usize;
        Factor {
            start: first as usize * image_len,
            step: image_len,
            ..Factor::new(place, Element::F32, of.input[0] * of.input[1])
        }
    }

    /// Columns of `count` images, or of one for each member of a batch.
    fn columns<P>(&self, place: P, count: u32) -> Factor<P> {
        Factor {
            step: self.windows.count() as usize,
            ..Factor::new(place, self.factors, self.windows.ld(count))
        }
    }

    /// `ys = conv(xs, weight)`
    pub(crate) fn forward<P: Copy>(
        &self,
        [xs, weight]: [P; 2],
        ys: P,
        room: Room<'_, P>,
    ) -> Result<Vec<ConvStep<P>>> {
        let (windows, results, mut steps) = (self.windows, self.results(), Vec::new());
        let left = self.weight(weight, room, &mut steps)?;
        let factors = self.factors;
        let by_image = self.is_by_image();
        let columns = match by_image && factors == Element::F32 && windows.are_elements() {
            true => None,
            false => Some(room(self.factors, self.room_for(windows.len()))?),
        };
        let in_one = match by_image {
            true => None,
            false => Some(room(Element::F32, self.room_for(self.outputs))?),
        };
        for (first, count) in self.groups() {
            let right = match columns {
                None => self.images(xs, windows, first),
                Some(columns) => {
                    let launch = windows.gather(factors, [xs, columns], first, count);
                    steps.push(ConvStep::Launch(launch));
                    self.columns(columns, count)
                }
            };
            let product = Product {
                rows: self.outputs,
                cols: windows.count(),
                inner: windows.len(),
                batch: count,
                left,
                right,
                result: self.images(ys, results, first),
                add: false,
            };
            let Some(in_one) = in_one else {
                steps.push(ConvStep::Product(product));
                continue;
            };
            steps.push(ConvStep::Product(Product {
                cols: count * windows.count(),
                batch: 1,
                result: Factor::new(in_one, Element::F32, windows.ld(count)),
                ..product
            }));
            let launch = results.add_up(Element::F32, in_one, Target::new(ys), first, count);
            steps.push(ConvStep::Launch(launch));
        }
        Ok(steps)
    }

    /// The f32 gradients of `xs` and `weight`, each if there is a place for it, from that of the result.
    pub(crate) fn backward<P: Copy>(
        &self,
        [xs, weight, grad]: [P; 3],
        dx: Option<Target<P>>,
        dw: Option<P>,
        room: Room<'_, P>,
    ) -> Result<Vec<ConvStep<P>>> {
        let (windows, mut steps) = (self.windows, Vec::new());
        let factors = self.factors;
        let left = match dx {
            Some(_) => self.weight(weight, room, &mut steps)?.t(),
            None => Factor::new(weight, Element::F32, windows.len()),
        };
        let straight = self.is_by_image() && windows.are_elements();
        let grads = room(self.factors, self.room_for(self.outputs))?;
        let columns = match dw.is_some() || !straight {
            true => room(self.factors, self.room_for(windows.len()))?,
            false => grads,
        };
        for (first, count) in self.groups() {
            let launch = self.results().gather(factors, [grad, grads], first, count);
            steps.push(ConvStep::Launch(launch));
            let (all, grads) = (count * windows.count(), self.columns(grads, count));
            if let Some(dw) = dw {
                let launch = windows.gather(factors, [xs, columns], first, count);
                steps.push(ConvStep::Launch(launch));
                steps.push(ConvStep::Product(Product {
                    rows: self.outputs,
                    cols: windows.len(),
                    inner: all,
                    batch: 1,
                    left: grads,
                    right: self.columns(columns, count).t(),
                    result: Factor::new(dw, Element::F32, windows.len()),
                    add: first > 0,
                }));
            }
            let Some(dx) = dx else { continue };
            let product = Product {
                rows: windows.len(),
                cols: all,
                inner: self.outputs,
                batch: 1,
                left,
                right: grads,
                result: self.columns(columns, count),
                add: false,
            };
            if straight {
                steps.push(ConvStep::Product(Product {
                    cols: windows.count(),
                    batch: count,
                    result: self.images(dx.place, windows, first),
                    add: dx.add,
                    ..product
                }));
                continue;
            }
            steps.push(ConvStep::Product(product));
            let launch = windows.add_up(factors, columns, dx, first, count);
            steps.push(ConvStep::Launch(launch));
        }
        Ok(steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conv(element: Element, size: usize, channels: [usize; 2], kernel: usize) -> Conv {
        let [from, to] = channels;
        let (xs, weight) = ([256, from, size, size], [to, from, kernel, kernel]);
        Conv::new(element, xs, weight, [size; 2], [1, kernel / 2]).unwrap()
    }

    /// Steps, bytes of the largest buffer, and products.
    fn forward(conv: &Conv) -> (usize, usize, Vec<Product<u32>>) {
        let (mut number, mut most) = (10, 0);
        let mut room = |element: Element, len: usize| {
            (number, most) = (number + 1, most.max(len * element.bytes() as usize));
            Ok(number)
        };
        let steps = conv.forward([0, 1], 2, &mut room).unwrap();
        let products = steps.iter().filter_map(|step| match step {
            ConvStep::Product(product) => Some(*product),
            ConvStep::Launch(_) => None,
        });
        (steps.len(), most, products.collect())
    }

    #[test]
    fn columns_are_held_for_as_many_images_as_fit() {
        let (steps, bytes, products) = forward(&conv(Element::Bf16, 56, [64, 64], 3));
        // The weight, then columns and a product for each group.
        assert_eq!((steps, products.len()), (9, 4));
        assert!(bytes <= COLUMN_BYTES);
        assert_eq!(products.iter().map(|p| p.batch).sum::<u32>(), 256);
        let p = products[1];
        assert_eq!((p.rows, p.cols, p.inner), (64, 3136, 576));
        assert_eq!(p.result.start, 74 * 64 * 3136);
    }

    #[test]
    fn small_maps_are_multiplied_in_one_piece() {
        let (steps, _, products) = forward(&conv(Element::F32, 7, [512, 512], 3));
        assert_eq!((steps, products.len()), (3, 1));
        assert_eq!((products[0].cols, products[0].batch), (256 * 49, 1));
    }

    #[test]
    fn large_pointwise_convolutions_in_f32_need_no_columns() {
        let (steps, bytes, products) = forward(&conv(Element::F32, 56, [64, 256], 1));
        assert_eq!((steps, bytes), (products.len(), 0));
        assert_eq!(products[0].right.place, 0);
    }

    #[test]
    fn sizes_beyond_what_kernels_count_are_errors() {
        let sizes = ([1 << 20, 8, 64, 64], [8, 8, 1, 1]);
        assert!(Conv::new(Element::F32, sizes.0, sizes.1, [64; 2], [1, 0]).is_err());
    }
}
