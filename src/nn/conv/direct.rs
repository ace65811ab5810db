//! Convolution on a CPU without a matrix of what its kernel sees.
//!
//! A band of the picture's rows is copied with the zeros around it, small enough to stay
//! in a core's cache. In it, what a number of the kernel sees at neighbouring places lies
//! one after another: so it is read where it is, and a few outputs at a few dozen places
//! are summed in the processor's registers from the first number of the kernel to the
//! last. Threads share the bands.

use std::iter::repeat_n;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::interruption::{self, Watch};
use crate::nn::kernels::{Element, Elements, in_format};
use crate::nn::unfold::Window;

/// Outputs whose elements lie side by side.
const PANEL: usize = 8;
/// Vectors of places that are summed at once, and the most elements that a vector has.
const VECTORS: usize = 3;
const MOST_LANES: usize = 16;
/// Elements of a band: 1 MiB, half of a second cache.
const BAND: usize = 256 * 1024;
/// Parts of the work that each thread has, so that all end at about the same time.
const PARTS_PER_THREAD: usize = 4;
/// Multiplications from which on it is asked in between whether they are still wanted:
/// some hundredths of a second.
const WATCHED_FROM: usize = 1 << 30;

/// The elements of a convolution's kernels as they are summed.
pub(super) struct Kernels {
    /// Of each [`PANEL`] outputs: (inputs, rows, columns, outputs), the last filled up with
    /// zeros.
    panels: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
}

impl Kernels {
    /// `weight`: (outputs, inputs, k, k); `bias`: (outputs); of any format.
    ///
    /// # Errors
    /// A candle error if they are not on a CPU.
    pub(super) fn new(weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let (outputs, inputs, rows, columns) = weight.dims4()?;
        let bias = bias.to_dtype(DType::F32)?.to_vec1()?;
        let numbers = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let lines = inputs * rows * columns;
        let mut panels = vec![0.0; outputs.next_multiple_of(PANEL) * lines];
        for (output, kernel) in numbers.chunks_exact(lines.max(1)).enumerate() {
            let panel = &mut panels[output / PANEL * PANEL * lines..];
            for (packed, number) in panel[output % PANEL..].iter_mut().step_by(PANEL).zip(kernel) {
                *packed = *number;
            }
        }
        Ok(Self { panels, bias, inputs })
    }

    /// Elements of the kernels, without bias.
    pub(super) fn count(&self, kernel: usize) -> usize {
        self.bias.len() * self.inputs * kernel * kernel
    }

    /// `x`: (batch, inputs, height, width), of any format. Returns (batch, outputs, rows,
    /// row length) in the format of `x`, added to `residual` of that shape if there is one.
    ///
    /// # Errors
    /// A candle error if the shapes do not fit, or [`interruption::Cancelled`].
    pub(super) fn convolve(
        &self,
        x: &Tensor,
        places: Places,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.convolve_by(x, places, residual, (BAND, pulp::Arch::new()))
    }

    /// `way`: elements of a band, if it is more than a row of places; and what the processor has.
    fn convolve_by(
        &self,
        x: &Tensor,
        places: Places,
        residual: Option<&Tensor>,
        way: (usize, pulp::Arch),
    ) -> Result<Tensor> {
        in_format!(x.dtype(), "a convolution", N => self.convolve_numbers::<N>(x, places, residual, way))
    }

    fn convolve_numbers<N: Element>(
        &self,
        x: &Tensor,
        places: Places,
        residual: Option<&Tensor>,
        way: (usize, pulp::Arch),
    ) -> Result<Tensor> {
        let Places { window, ref rows, .. } = places;
        let (band, arch) = way;
        let x = x.contiguous()?;
        let (batch, channels, height, width) = x.dims4()?;
        if channels != self.inputs {
            candle_core::bail!("{channels} channels for a convolution of {}", self.inputs);
        }
        let (numbers, outputs) = (Elements::<N>::of(&x)?, self.bias.len());
        let shape = (batch, outputs, rows.len(), window.row_length);
        let mut made = match residual {
            None => vec![N::narrow(0.0); batch * outputs * rows.len() * window.row_length],
            Some(residual) if residual.dims4()? == shape => residual.flatten_all()?.to_vec1()?,
            Some(other) => candle_core::bail!("{:?} added to {shape:?}", other.dims()),
        };
        let pictures = made.chunks_exact_mut((outputs * rows.len() * window.row_length).max(1));
        let inputs = numbers.all().chunks_exact((channels * height * width).max(1));
        for (made, x) in pictures.zip(inputs) {
            let layout = BandLayout::new(window, rows.len(), channels, band);
            let picture = Picture { numbers: x, height, width, zoom: places.sides.zoom() };
            let (is_added, first_row) = (residual.is_some(), rows.start);
            Convolution { kernels: self, picture, layout, first_row, is_added, arch }.run(made)?;
        }
        Tensor::from_vec(made, shape, &Device::Cpu)
    }
}

/// Where kernels stand on a picture.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) window: Window,
    /// Rows of places.
    pub(super) rows: Range<usize>,
    pub(super) sides: Sides,
}

/// How large the picture is that kernels see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sides {
    /// As it is.
    AsTheyAre,
    /// Each pixel is there four times.
    Doubled,
}

impl Sides {
    /// How often a pixel is in its row, and its row in the picture.
    pub(super) fn zoom(self) -> usize {
        match self {
            Self::AsTheyAre => 1,
            Self::Doubled => 2,
        }
    }
}

/// (channels, height, width), which is seen `zoom` times as high and wide.
#[derive(Debug, Clone, Copy)]
struct Picture<'a, N> {
    numbers: &'a [N],
    height: usize,
    width: usize,
    zoom: usize,
}

impl<N: Element> Picture<'_, N> {
    /// A row of what is seen, if it is in the picture.
    fn row(&self, channel: usize, row: usize) -> Option<&[N]> {
        let row = row / self.zoom;
        let start = (channel * self.height + row) * self.width;
        (row < self.height).then(|| &self.numbers[start..start + self.width])
    }
}

/// How the rows of a picture that some rows of places see lie in memory: by channel, row,
/// and column, those `stride` apart one after another.
#[derive(Debug, Clone, Copy)]
struct BandLayout {
    window: Window,
    /// Rows of places of a whole band.
    rows: usize,
    channels: usize,
    /// Elements of a row's columns that are `stride` apart.
    pitch: usize,
}

impl BandLayout {
    fn new(window: Window, rows: usize, channels: usize, most_numbers: usize) -> Self {
        // Whole vectors are read, whatever of them is kept.
        let pitch = window.row_length.next_multiple_of(MOST_LANES)
            + (window.kernel - 1) / window.stride
            + VECTORS * MOST_LANES;
        let row = (channels * window.stride * pitch).max(1);
        let fitting = (most_numbers / row).saturating_sub(window.kernel - 1) / window.stride;
        let even = rows.div_ceil(PARTS_PER_THREAD * rayon::current_num_threads());
        Self { window, rows: fitting.min(even).max(1), channels, pitch }
    }

    /// Rows of a picture that `rows` of places see.
    fn rows_seen(&self, rows: usize) -> usize {
        (rows - 1) * self.window.stride + self.window.kernel
    }

    /// Elements of a row of the picture.
    fn row(&self) -> usize {
        self.window.stride * self.pitch
    }

    /// Where the kernel's elements see theirs, at the first of `rows` of places.
    fn offsets(&self, rows: usize) -> Vec<usize> {
        let Window { kernel, stride, .. } = self.window;
        let rows_seen = self.rows_seen(rows);
        let mut offsets = Vec::with_capacity(self.channels * kernel * kernel);
        for channel in 0..self.channels {
            for (y, x) in (0..kernel * kernel).map(|index| (index / kernel, index % kernel)) {
                let row = (channel * rows_seen + y) * self.row();
                offsets.push(row + x % stride * self.pitch + x / stride);
            }
        }
        offsets
    }

    /// Copies what `rows` of places from `first` on see.
    fn fill<N: Element>(&self, band: &mut Vec<f32>, x: &Picture<N>, first: usize, rows: usize) {
        let Window { stride, before, .. } = self.window;
        let (rows_seen, mut zoomed) = (self.rows_seen(rows), Vec::new());
        band.resize(self.channels * rows_seen * self.row(), 0.0);
        for (index, made) in band.chunks_exact_mut(self.row()).enumerate() {
            let (channel, row) = (index / rows_seen, index % rows_seen);
            let y = (first * stride + row).checked_sub(before);
            let Some(row) = y.and_then(|y| x.row(channel, y)) else {
                made.fill(0.0);
                continue;
            };
            if x.zoom > 1 {
                zoomed.clear();
                zoomed.extend(row.iter().flat_map(|x_| repeat_n(x_.wide(), x.zoom)));
            }
            for (column, made) in made.chunks_exact_mut(self.pitch).enumerate() {
                match x.zoom {
                    1 => self.fill_columns(made, row, column),
                    _ => self.fill_columns(made, &zoomed, column),
                }
            }
        }
    }

    /// Copies those columns of a row that are `stride` apart, from `first` on, which is
    /// counted from the first zero.
    fn fill_columns<N: Element>(&self, made: &mut [f32], row: &[N], first: usize) {
        let Window { stride, before, .. } = self.window;
        let zeros = before.saturating_sub(first).div_ceil(stride).min(made.len());
        let (zeros, made) = made.split_at_mut(zeros);
        let start = (first + zeros.len() * stride - before).min(row.len());
        let count = (row.len() - start).div_ceil(stride).min(made.len());
        let (seen, beyond) = made.split_at_mut(count);
        zeros.fill(0.0);
        beyond.fill(0.0);
        if stride == 1 {
            let row = &row[start..start + count];
            seen.iter_mut().zip(row).for_each(|(made, number)| *made = number.wide());
        } else {
            let row = row[start..].iter().step_by(stride);
            seen.iter_mut().zip(row).for_each(|(made, number)| *made = number.wide());
        }
    }
}

/// One picture's.
struct Convolution<'a, N> {
    kernels: &'a Kernels,
    picture: Picture<'a, N>,
    layout: BandLayout,
    /// The first row of places.
    first_row: usize,
    /// To what is there already.
    is_added: bool,
    arch: pulp::Arch,
}

/// Some outputs of a band.
struct Part<'a, N> {
    first_row: usize,
    first_output: usize,
    /// Of each output: (rows, row length).
    made: Vec<&'a mut [N]>,
}

impl<N: Element> Convolution<'_, N> {
    /// `made`: (outputs, rows, row length).
    fn run(&self, made: &mut [N]) -> Result<()> {
        let lines = self.kernels.inputs * self.layout.window.kernel.pow(2);
        if made.len().saturating_mul(lines) < WATCHED_FROM {
            return self.fill(made, Watch::of_nothing());
        }
        interruption::shared(|watch| self.fill(made, watch))
    }

    fn fill(&self, made: &mut [N], watch: Watch) -> Result<()> {
        let parts = self.parts(made);
        parts.into_par_iter().try_for_each_init(Vec::new, |room, mut part| {
            watch.over(interruption::check)?;
            self.fill_part(room, &mut part);
            Ok(())
        })
    }

    /// Bands, and if those are fewer than threads want, parts of their outputs.
    fn parts<'b>(&self, made: &'b mut [N]) -> Vec<Part<'b, N>> {
        let outputs = self.kernels.bias.len().max(1);
        let picture = made.len() / outputs;
        let band = self.layout.rows * self.layout.window.row_length;
        let bands = picture.div_ceil(band.max(1));
        let wanted = (PARTS_PER_THREAD * rayon::current_num_threads()).div_ceil(bands.max(1));
        let of_each = outputs.div_ceil(wanted).next_multiple_of(PANEL);
        let part = |index: usize| Part {
            first_row: index % bands * self.layout.rows,
            first_output: index / bands * of_each,
            made: Vec::new(),
        };
        let mut parts: Vec<_> = (0..bands * outputs.div_ceil(of_each)).map(part).collect();
        for (output, made) in made.chunks_mut(picture.max(1)).enumerate() {
            let parts = &mut parts[output / of_each * bands..];
            for (part, made) in parts.iter_mut().zip(made.chunks_mut(band)) {
                part.made.push(made);
            }
        }
        parts
    }

    fn fill_part(&self, room: &mut Vec<f32>, part: &mut Part<N>) {
        let Self { kernels, picture, layout, first_row, is_added, arch } = self;
        let rows = part.made.first().map_or(0, |made| made.len() / layout.window.row_length);
        layout.fill(room, picture, first_row + part.first_row, rows);
        let offsets = layout.offsets(rows);
        let panel = PANEL * offsets.len();
        let panels = kernels.panels[part.first_output / PANEL * panel..].chunks_exact(panel);
        let biases = kernels.bias[part.first_output..].chunks(PANEL);
        for ((made, panel), bias) in part.made.chunks_mut(PANEL).zip(panels).zip(biases) {
            let offsets = &offsets;
            let is_added = *is_added;
            let sums = PanelSums { panel, bias, seen: room, offsets, layout, made, is_added };
            arch.dispatch(sums);
        }
    }
}

/// What a panel of kernels makes of a band.
struct PanelSums<'a, 'b, N> {
    panel: &'a [f32],
    bias: &'a [f32],
    seen: &'a [f32],
    offsets: &'a [usize],
    layout: &'a BandLayout,
    /// Of each of at most [`PANEL`] outputs: (rows, row length).
    made: &'a mut [&'b mut [N]],
    is_added: bool,
}

impl<N: Element> WithSimd for PanelSums<'_, '_, N> {
    type Output = ();

    /// Sums, and what is multiplied, stay in registers: 24 and 4 of 32, or 8 and 3 of 16 (with
    /// 12 and 4 the compiler keeps some in memory, and takes half as long again).
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let outputs = self.made.len();
        if S::REGISTER_COUNT < 32 {
            for first in (0..outputs).step_by(4) {
                self.sum_rows::<S, 4, 2>(simd, first);
            }
        } else if outputs <= 4 {
            self.sum_rows::<S, 4, VECTORS>(simd, 0);
        } else {
            self.sum_rows::<S, PANEL, VECTORS>(simd, 0);
        }
    }
}

impl<N: Element> PanelSums<'_, '_, N> {
    /// `OUTPUTS` outputs from `first` on, where there are so many, at `VECTORS` vectors of places
    /// at once.
    #[inline(always)]
    fn sum_rows<S: Simd, const OUTPUTS: usize, const VECTORS: usize>(
        &mut self,
        simd: S,
        first: usize,
    ) {
        let (length, lanes) = (self.layout.window.row_length, S::F32_LANES);
        for start in (0..self.made[first].len()).step_by(length) {
            let row = start / length * self.layout.window.stride * self.layout.row();
            for place in (0..length).step_by(VECTORS * lanes) {
                let (seen, at) = (row + place, Tile { first, start: start + place });
                let count = (length - place).min(VECTORS * lanes);
                match count.div_ceil(lanes) {
                    1 => self.sum_tile::<S, OUTPUTS, 1>(simd, seen, at, count),
                    2 => self.sum_tile::<S, OUTPUTS, 2>(simd, seen, at, count),
                    _ => self.sum_tile::<S, OUTPUTS, VECTORS>(simd, seen, at, count),
                }
            }
        }
    }

    /// `count` places, whose first sees what begins at `seen`.
    #[inline(always)]
    fn sum_tile<S: Simd, const OUTPUTS: usize, const VECTORS: usize>(
        &mut self,
        simd: S,
        seen: usize,
        at: Tile,
        count: usize,
    ) {
        // Nothing here depends on how many outputs there are: else the sums are kept in memory.
        let bias = |output: usize| self.bias.get(at.first + output).copied().unwrap_or_default();
        let mut sums: [[S::f32s; VECTORS]; OUTPUTS] =
            std::array::from_fn(|output| [simd.splat_f32s(bias(output)); VECTORS]);
        let band = &self.seen[seen..];
        let (numbers, _) = self.panel.as_chunks::<OUTPUTS>();
        let numbers = numbers[at.first / OUTPUTS..].iter().step_by(PANEL / OUTPUTS);
        for (numbers, offset) in numbers.zip(self.offsets) {
            let (seen, _) = S::as_simd_f32s(&band[*offset..][..VECTORS * S::F32_LANES]);
            for (sums, number) in sums.iter_mut().zip(numbers) {
                let number = simd.splat_f32s(*number);
                for (sum, seen) in sums.iter_mut().zip(seen) {
                    *sum = simd.mul_add_e_f32s(number, *seen, *sum);
                }
            }
        }
        for (made, sums) in self.made[at.first..].iter_mut().zip(sums) {
            store(simd, &mut made[at.start..][..count], sums, self.is_added);
        }
    }
}

/// Where sums belong.
#[derive(Debug, Clone, Copy)]
struct Tile {
    /// The first output.
    first: usize,
    /// The first place.
    start: usize,
}

/// Writes as many sums as `made` has room for, or adds them as they are after being written.
#[inline(always)]
fn store<S: Simd, N: Element, const VECTORS: usize>(
    simd: S,
    made: &mut [N],
    sums: [S::f32s; VECTORS],
    is_added: bool,
) {
    let mut room = [0.0; MOST_LANES];
    for (made, sums) in made.chunks_mut(S::F32_LANES).zip(sums) {
        simd.partial_store_f32s(&mut room[..S::F32_LANES], sums);
        if is_added {
            let added = |made: &N, sum: f32| N::narrow(made.wide() + N::rounded(sum));
            made.iter_mut().zip(room).for_each(|(made, sum)| *made = added(made, sum));
        } else {
            made.iter_mut().zip(room).for_each(|(made, sum)| *made = N::narrow(sum));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::kernels::emulation::{assert_close, numbers};
    use super::*;

    /// The definition, in 64 bits.
    fn by_definition(x: &Tensor, weight: &Tensor, bias: &Tensor, window: Window) -> Tensor {
        let list = |x: &Tensor| -> Vec<f64> {
            x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let (batch, channels, height, width) = x.dims4().unwrap();
        let (outputs, _, kernel, _) = weight.dims4().unwrap();
        let (rows, length) = (height.div_ceil(window.stride), window.row_length);
        let (x, weight, bias) = (list(x), list(weight), list(bias));
        let at = |plane: usize, y: usize, x_: usize| {
            let (y, x_) = (y.checked_sub(window.before)?, x_.checked_sub(window.before)?);
            (y < height && x_ < width).then(|| x[(plane * height + y) * width + x_])
        };
        let sum = |index: usize| {
            let (plane, row, place) =
                (index / (rows * length), index / length % rows, index % length);
            let (picture, output) = (plane / outputs, plane % outputs);
            let term = |line: usize| {
                let (channel, within) = (line / kernel.pow(2), line % kernel.pow(2));
                let y = row * window.stride + within / kernel;
                let x = place * window.stride + within % kernel;
                let seen = at(picture * channels + channel, y, x).unwrap_or(0.0);
                seen * weight[output * channels * kernel.pow(2) + line]
            };
            (0..channels * kernel.pow(2)).map(term).sum::<f64>() + bias[output]
        };
        let made: Vec<_> = (0..batch * outputs * rows * length).map(sum).collect();
        Tensor::from_vec(made, (batch, outputs, rows, length), &Device::Cpu).unwrap()
    }

    /// What this processor has, and what older ones have.
    fn every_way() -> Vec<pulp::Arch> {
        #[cfg(target_arch = "x86_64")]
        let older = pulp::x86::V3::try_new().map(pulp::Arch::V3);
        #[cfg(not(target_arch = "x86_64"))]
        let older = None;
        [pulp::Arch::new(), pulp::Arch::Scalar].into_iter().chain(older).collect()
    }

    #[test]
    fn every_shape_in_whatever_parts_is_what_the_definition_says() {
        every_way().into_iter().for_each(assert_as_defined);
    }

    fn assert_as_defined(arch: pulp::Arch) {
        // Kernel, zeros before, stride; sizes that fill no vector, some, and more than a tile;
        // outputs that fill no panel, some, and all but one.
        let windows: [(usize, usize, usize); 4] = [(3, 1, 1), (1, 0, 1), (3, 0, 2), (5, 2, 1)];
        let sizes: [(usize, usize, usize); 4] = [(3, 5, 1), (9, 70, 3), (6, 33, 15), (4, 112, 8)];
        for ((kernel, before, stride), (height, width, outputs)) in
            windows.into_iter().flat_map(|window| sizes.map(|size| (window, size)))
        {
            let row_length = width.div_ceil(stride);
            let window = Window { kernel, stride, before, row_length };
            // Differences of sums of some dozen products below ten, in 32 bits; and half of
            // the last digit of 8 and 11 bits of sums below 64.
            for (dtype, tolerance) in
                [(DType::F32, 1e-4), (DType::BF16, 0.126), (DType::F16, 0.0158)]
            {
                let x = numbers(&[2, 3, height, width], 1, dtype);
                let weight = numbers(&[outputs, 3, kernel, kernel], 2, dtype);
                let bias = numbers(&[outputs], 3, dtype);
                let expected = by_definition(&x, &weight, &bias, window);
                let kernels = Kernels::new(&weight, &bias).unwrap();
                for (threads, band) in [(1, usize::MAX), (1, 2000), (3, BAND), (64, 1)] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                    let pool = pool.build().unwrap();
                    let rows = height.div_ceil(stride);
                    let places = |rows| Places { window, rows, sides: Sides::AsTheyAre };
                    let convolve = |onto| {
                        kernels.convolve_by(&x, places(0..rows), onto, (band, arch)).unwrap()
                    };
                    let made = pool.install(|| convolve(None));
                    assert_eq!(made.dtype(), dtype);
                    assert_close(&made, &expected, tolerance);

                    let onto = pool.install(|| convolve(Some(&made)));
                    assert_close(&onto, &(&made + &made).unwrap(), 0.0);
                    let some =
                        kernels.convolve_by(&x, places(1..rows), None, (band, arch)).unwrap();
                    assert_close(&some, &made.narrow(2, 1, rows - 1).unwrap(), 0.0);
                }
            }
        }
    }

    #[test]
    fn a_large_one_can_be_broken_off_and_one_that_does_not_fit_is_refused() {
        // Sees the same number everywhere: 2^30 multiplications and more.
        let x = Tensor::zeros((1, 1024, 64, 64), DType::F32, &Device::Cpu).unwrap();
        let weight = Tensor::zeros((64, 1024, 3, 3), DType::F32, &Device::Cpu).unwrap();
        let bias = Tensor::zeros(64, DType::F32, &Device::Cpu).unwrap();
        let kernels = Kernels::new(&weight, &bias).unwrap();
        let window = Window { kernel: 3, stride: 1, before: 1, row_length: 64 };
        let places = || Places { window, rows: 0..64, sides: Sides::AsTheyAre };
        let convolve = || kernels.convolve(&x, places(), None);

        let error = interruption::watched(&|| true, convolve).unwrap_err();

        assert!(error.to_string().contains("cancelled"), "{error}");
        let other = x.narrow(1, 0, 9).unwrap();
        let error = kernels.convolve(&other, places(), None).unwrap_err().to_string();
        assert!(error.contains("9 channels"), "{error}");
        let error = kernels.convolve(&x, places(), Some(&other)).unwrap_err().to_string();
        assert!(error.contains("added to"), "{error}");
    }
}
