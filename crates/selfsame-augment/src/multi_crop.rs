use image::RgbImage;

use crate::chw::{ChwImage, Normalize};
use crate::compose::draw_ops;
use crate::config::AugmentConfig;
use crate::drawn::{DrawnOp, DrawnView};
use crate::error::AugmentError;
use crate::ops::kernels::Planes;
use crate::ops::resize::Picture;
use crate::parallel::map_images;
use crate::random_resized_crop::random_resized_crop;
use crate::seed::SampleKey;
use crate::simd::Level;
use crate::workspace::Workspace;

/// Two global crops with unequal recipes and any number of local ones (DINO, section 3.1).
///
/// Views are in the order global 1, global 2, local 1, local 2, …
#[derive(Debug, Clone, PartialEq)]
pub struct MultiCrop {
    config: AugmentConfig,
    normalize: Normalize,
}

impl MultiCrop {
    /// Number of global crops; the method has always two.
    pub const NUM_GLOBAL: usize = 2;

    /// Takes a configuration.
    ///
    /// # Errors
    /// [`AugmentError::Config`] with every problem that [`AugmentConfig::check`] finds.
    pub fn new(config: AugmentConfig) -> Result<Self, AugmentError> {
        let problems = config.check();
        if !problems.is_empty() {
            return Err(AugmentError::Config(problems));
        }
        let normalize = Normalize::new(config.mean, config.std);
        Ok(Self { config, normalize })
    }

    /// The configuration this was made from.
    pub fn config(&self) -> &AugmentConfig {
        &self.config
    }

    /// Number of views of an image: two and the local crops.
    pub fn num_views(&self) -> usize {
        Self::NUM_GLOBAL + self.config.local_crops
    }

    /// Side of a view in pixels; that of a local one for every number from 2 on.
    pub fn view_size(&self, view: usize) -> usize {
        if view < Self::NUM_GLOBAL {
            self.config.global_size
        } else {
            self.config.local_size
        }
    }

    /// Draws the parameters of every view of an image of `width` × `height` pixels.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn draw(&self, width: usize, height: usize, key: SampleKey) -> Vec<DrawnView> {
        (0..self.num_views())
            .map(|view| self.draw_view(width, height, key, view))
            .collect()
    }

    /// Draws the parameters of one view; a pure function of its arguments.
    ///
    /// A `view` from [`MultiCrop::num_views`] on is one more local view, drawn from numbers of its own.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn draw_view(&self, width: usize, height: usize, key: SampleKey, view: usize) -> DrawnView {
        self.draw_with(width, height, key, view, Vec::new())
    }

    /// The same with the memory of a list of operations drawn before.
    fn draw_with(
        &self,
        width: usize,
        height: usize,
        key: SampleKey,
        view: usize,
        mut drawn: Vec<DrawnOp>,
    ) -> DrawnView {
        let config = &self.config;
        let (scale, ops) = match view {
            0 => (config.global_scale, &config.global1),
            1 => (config.global_scale, &config.global2),
            _ => (config.local_scale, &config.local),
        };
        let mut stream = key.view_stream(view);
        let crop = random_resized_crop(&mut stream, width, height, scale, config.ratio);
        drawn.clear();
        draw_ops(ops, &mut stream, &mut drawn);
        DrawnView {
            crop,
            size: self.view_size(view),
            interpolation: config.interpolation,
            ops: drawn,
        }
    }

    /// [`MultiCrop::draw`] into a list whose memory is used again.
    fn draw_into(&self, width: usize, height: usize, key: SampleKey, drawn: &mut Vec<DrawnView>) {
        drawn.truncate(self.num_views());
        for (view, slot) in drawn.iter_mut().enumerate() {
            let ops = std::mem::take(&mut slot.ops);
            *slot = self.draw_with(width, height, key, view, ops);
        }
        for view in drawn.len()..self.num_views() {
            drawn.push(self.draw_view(width, height, key, view));
        }
    }

    /// Carries out a drawn view on an image and writes it, normalised, to `out` as
    /// `[3, size, size]`.
    ///
    /// # Errors
    /// [`AugmentError::OutputLength`] if `out` does not hold 3·size² values.
    ///
    /// # Panics
    /// If the view's box does not lie within the image.
    pub fn apply(
        &self,
        view: &DrawnView,
        image: &RgbImage,
        out: &mut [f32],
        workspace: &mut Workspace,
    ) -> Result<(), AugmentError> {
        let expected = 3 * view.size * view.size;
        if out.len() != expected {
            return Err(AugmentError::OutputLength {
                what: "a view".into(),
                expected,
                got: out.len(),
            });
        }
        view.render_planes(image, workspace);
        self.normalize
            .write(&workspace.planes, out, workspace.level);
        Ok(())
    }

    /// Draws and carries out every view, each written to its slice of 3·size² values.
    ///
    /// What was drawn lies in the workspace until it is used again.
    ///
    /// # Errors
    /// [`AugmentError::EmptyImage`], [`AugmentError::ViewCount`], [`AugmentError::OutputLength`];
    /// nothing is written then.
    pub fn write_crops<'w>(
        &self,
        image: &RgbImage,
        key: SampleKey,
        out: &mut [&mut [f32]],
        workspace: &'w mut Workspace,
    ) -> Result<&'w [DrawnView], AugmentError> {
        self.write_views(image, key, out, workspace, |planes, out, level| {
            self.normalize.write(planes, out, level);
        })
    }

    /// [`MultiCrop::write_crops`] before normalisation: a quarter of the bytes to carry to a device
    /// that normalises by itself.
    ///
    /// # Errors
    /// As [`MultiCrop::write_crops`].
    pub fn write_crops_u8<'w>(
        &self,
        image: &RgbImage,
        key: SampleKey,
        out: &mut [&mut [u8]],
        workspace: &'w mut Workspace,
    ) -> Result<&'w [DrawnView], AugmentError> {
        self.write_views(image, key, out, workspace, |planes, out, _| {
            out.copy_from_slice(&planes.data);
        })
    }

    /// Draws and carries out every view and hands each, with its slice, to `write`.
    fn write_views<'w, T>(
        &self,
        image: &RgbImage,
        key: SampleKey,
        out: &mut [&mut [T]],
        workspace: &'w mut Workspace,
        write: impl Fn(&Planes, &mut [T], Level),
    ) -> Result<&'w [DrawnView], AugmentError> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(AugmentError::EmptyImage { width, height });
        }
        if out.len() != self.num_views() {
            return Err(AugmentError::ViewCount {
                expected: self.num_views(),
                got: out.len(),
            });
        }
        for (view, out) in out.iter().enumerate() {
            let expected = 3 * self.view_size(view) * self.view_size(view);
            if out.len() != expected {
                let what = format!("view {view}");
                return Err(AugmentError::OutputLength {
                    what,
                    expected,
                    got: out.len(),
                });
            }
        }
        // Taken out, so that the rest of the workspace can change meanwhile.
        let mut drawn = std::mem::take(&mut workspace.drawn);
        let mut shared = std::mem::take(&mut workspace.shared);
        self.draw_into(width as usize, height as usize, key, &mut drawn);
        shared.load_shared(image, drawn.iter().map(|view| view.crop), workspace.level);
        let picture = Picture {
            image,
            shared: &shared,
        };
        for (view, out) in drawn.iter().zip(out.iter_mut()) {
            view.render_picture(picture, workspace);
            write(&workspace.planes, out, workspace.level);
        }
        workspace.shared = shared;
        workspace.drawn = drawn;
        Ok(&workspace.drawn)
    }

    /// Every view of an image in newly allocated memory.
    ///
    /// # Panics
    /// If the image has no pixels; a decoder never gives such an image.
    pub fn crops(&self, image: &RgbImage, key: SampleKey) -> Vec<ChwImage> {
        self.crops_with(image, key, &mut Workspace::new())
    }

    /// The same with buffers that are used again, such as those that [`map_images`] keeps per thread.
    ///
    /// # Panics
    /// As [`MultiCrop::crops`].
    pub fn crops_with(
        &self,
        image: &RgbImage,
        key: SampleKey,
        workspace: &mut Workspace,
    ) -> Vec<ChwImage> {
        let mut views: Vec<ChwImage> = (0..self.num_views())
            .map(|view| ChwImage::zeroed(self.view_size(view)))
            .collect();
        let mut out: Vec<&mut [f32]> = views.iter_mut().map(|v| v.data.as_mut_slice()).collect();
        self.write_crops(image, key, &mut out, workspace)
            .expect("an image has pixels, and each view was allocated at its size");
        views
    }

    /// Every view of a batch of images on rayon's current pool, written view by view.
    ///
    /// `global` is `[2, B, 3, global_size, global_size]` and `local`
    /// `[local_crops, B, 3, local_size, local_size]`: all samples of view 0 first.
    /// The bytes do not depend on the number of threads.
    ///
    /// # Errors
    /// [`AugmentError::OutputLength`] if a batch has another length, [`AugmentError::EmptyImage`].
    pub fn write_batch(
        &self,
        samples: &[(&RgbImage, SampleKey)],
        global: &mut [f32],
        local: &mut [f32],
    ) -> Result<Vec<Vec<DrawnView>>, AugmentError> {
        let outputs = self.outputs(samples.len(), global, local)?;
        let jobs: Vec<_> = samples.iter().zip(outputs).collect();
        map_images(jobs, |workspace, ((image, key), mut out)| {
            self.write_crops(image, *key, &mut out, workspace)
                .map(<[DrawnView]>::to_vec)
        })
        .into_iter()
        .collect()
    }

    /// How many values all global crops of `b` images have, and all local ones.
    pub fn batch_lens(&self, b: usize) -> [usize; 2] {
        let [global, local] = self.view_lens();
        [
            Self::NUM_GLOBAL * b * global,
            self.config.local_crops * b * local,
        ]
    }

    /// Cuts a batch of `b` images, laid out as for [`MultiCrop::write_batch`], into the slices of each
    /// image, as [`MultiCrop::write_crops`] takes them.
    ///
    /// # Errors
    /// [`AugmentError::OutputLength`] if they are not as long as [`MultiCrop::batch_lens`] says.
    pub fn outputs<'o, T>(
        &self,
        b: usize,
        global: &'o mut [T],
        local: &'o mut [T],
    ) -> Result<Vec<Vec<&'o mut [T]>>, AugmentError> {
        let names = ["the global batch", "the local batch"];
        let lens = [global.len(), local.len()];
        for ((what, expected), got) in names.into_iter().zip(self.batch_lens(b)).zip(lens) {
            if expected != got {
                return Err(AugmentError::OutputLength {
                    what: what.into(),
                    expected,
                    got,
                });
            }
        }
        let mut outputs: Vec<Vec<&mut [T]>> = (0..b)
            .map(|_| Vec::with_capacity(self.num_views()))
            .collect();
        let [global_len, local_len] = self.view_lens();
        let views = global.chunks_exact_mut(global_len);
        let views = views.chain(local.chunks_exact_mut(local_len.max(1)));
        for (i, view) in views.enumerate() {
            outputs[i % b].push(view);
        }
        Ok(outputs)
    }

    /// How many values a global view has, and a local one.
    fn view_lens(&self) -> [usize; 2] {
        let local = match self.config.local_crops {
            0 => 0, // and any local size
            _ => 3 * self.config.local_size.pow(2),
        };
        [3 * self.config.global_size.pow(2), local]
    }
}
