//! Max pooling of rows, and the way between rows and planes.

use super::conv::Windows;
use super::row_conv::{EIGHT, by_threads};
use super::{Arg, Element, Launch, MAX_GRID_Y, Source, WARP, size};
use candle_core::{Result, bail};

/// Rows of threads that have a tile.
const TILE_ROWS: u32 = 8;

/// Max pooling of rows, with a byte for each result that tells its place in the window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowPool {
    pub(crate) element: Element,
    pub(crate) batch: u32,
    pub(crate) windows: Windows,
}

impl RowPool {
    /// `xs`: `[B, C, H, W]` whatever the order, with a multiple of [`EIGHT`] channels.
    pub(crate) fn new(
        element: Element,
        [batch, channels, h, w]: [usize; 4],
        output: [usize; 2],
        [kernel, stride, padding]: [usize; 3],
    ) -> Result<RowPool> {
        if kernel > super::pool::MAX_POOL_KERNEL
            || padding >= kernel
            || !channels.is_multiple_of(EIGHT)
        {
            bail!("cuda: no pooling of rows of {channels} channels by kernel {kernel}");
        }
        size(batch * h * w * channels)?;
        Ok(RowPool {
            element,
            batch: size(batch)?,
            windows: Windows {
                channels: size(channels)?,
                input: [size(h)?, size(w)?],
                kernel: [size(kernel)?; 2],
                output: [size(output[0])?, size(output[1])?],
                stride: size(stride)?,
                padding: padding as u32,
            },
        })
    }

    fn positions(&self, [h, w]: [u32; 2]) -> u32 {
        self.batch * h * w
    }

    /// Elements of the result.
    pub(crate) fn output_len(&self) -> usize {
        self.positions(self.windows.output) as usize * self.windows.channels as usize
    }

    /// Elements of the input.
    pub(crate) fn input_len(&self) -> usize {
        self.positions(self.windows.input) as usize * self.windows.channels as usize
    }

    /// `winners`: a byte for each result.
    pub(crate) fn forward<P>(&self, xs: P, ys: P, winners: P) -> Launch<P> {
        let kernel = self.element.pick("max_pool_rows_f32", "max_pool_rows_bf16");
        self.launch(kernel, [xs, ys, winners], self.windows.output)
    }

    pub(crate) fn grad<P>(&self, winners: P, grad: P, dx: P) -> Launch<P> {
        let kernel = self
            .element
            .pick("max_pool_rows_grad_f32", "max_pool_rows_grad_bf16");
        self.launch(kernel, [winners, grad, dx], self.windows.input)
    }

    fn launch<P>(&self, kernel: &'static str, places: [P; 3], plane: [u32; 2]) -> Launch<P> {
        let positions = self.positions(plane);
        let mut args: Vec<_> = places.map(Arg::Pointer).into();
        args.push(Arg::U32(positions));
        args.extend(self.windows.args());
        by_threads(
            kernel,
            positions * (self.windows.channels / EIGHT as u32),
            args,
        )
    }
}

/// `[B, positions, channels]` of this type and `[B, channels, positions]` of f32, one from the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planes {
    element: Element,
    batch: u32,
    channels: u32,
    positions: u32,
}

impl Planes {
    pub(crate) fn new(
        element: Element,
        batch: usize,
        channels: usize,
        positions: usize,
    ) -> Result<Planes> {
        let tiles = |len: usize| len.div_ceil(WARP as usize);
        size(batch * tiles(channels.max(positions)))?;
        if tiles(channels.max(positions)) > MAX_GRID_Y as usize {
            bail!("cuda: no exchange of {channels} channels and {positions} positions");
        }
        Ok(Planes {
            element,
            batch: size(batch)?,
            channels: size(channels)?,
            positions: size(positions)?,
        })
    }

    pub(crate) fn planes_of_rows<P>(&self, rows: P, planes: P) -> Launch<P> {
        let kernel = self
            .element
            .pick("rows_to_planes_f32", "rows_to_planes_bf16");
        self.launch(kernel, [rows, planes], [self.positions, self.channels])
    }

    pub(crate) fn rows_of_planes<P>(&self, planes: P, rows: P) -> Launch<P> {
        let kernel = self
            .element
            .pick("planes_to_rows_f32", "planes_to_rows_bf16");
        self.launch(kernel, [planes, rows], [self.channels, self.positions])
    }

    fn launch<P>(&self, kernel: &'static str, places: [P; 2], sizes: [u32; 2]) -> Launch<P> {
        let [rows, cols] = sizes.map(|len| len.div_ceil(WARP));
        let mut args: Vec<_> = places.map(Arg::Pointer).into();
        args.extend(sizes.map(Arg::U32));
        Launch {
            source: Source::ChannelsLast,
            kernel,
            grid: [self.batch * rows, cols],
            block: [WARP, TILE_ROWS],
            shared_bytes: 0,
            args,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_both_sides_of_an_exchange() {
        let planes = Planes::new(Element::Bf16, 3, 72, 49).unwrap();
        assert_eq!(planes.planes_of_rows(0, 1).grid, [6, 3]);
        assert_eq!(planes.rows_of_planes(0, 1).grid, [9, 2]);
    }

    #[test]
    fn a_thread_has_eight_channels_of_a_window_or_a_position() {
        let pool = |channels| {
            let shape = [2, channels, 112, 112];
            RowPool::new(Element::Bf16, shape, [56, 56], [3, 2, 1])
        };
        let launches = pool(64).unwrap();
        assert_eq!(launches.forward(0, 1, 2).grid, [2 * 56 * 56 * 8 / 256, 1]);
        assert_eq!(launches.grad(0, 1, 2).grid, [2 * 112 * 112 * 8 / 256, 1]);
        assert!(pool(63).is_err());
    }
}
