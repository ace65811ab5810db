//! What a convolution's kernel sees of a picture at each place, as a matrix: then the
//! convolution is a product of matrices, whose result lies as pictures do.

use std::ops::Range;

use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;

use super::kernels::{
    Element, Elements, Launch, Operation, address, expect_contiguous, length, run,
};

/// Lines of a matrix are as many as this divides: GPUs multiply such matrices fastest.
const LINES_AT_A_TIME: usize = 8;
/// Threads of a block.
const THREADS: usize = 256;
/// Pixels of a block.
const TILE: usize = 8 * THREADS;

/// A square kernel on its way over a picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// Pixels of a side.
    pub(super) kernel: usize,
    /// Pixels from one place to the next.
    pub(super) stride: usize,
    /// Zeros left of and above the picture.
    pub(super) before: usize,
    /// Places in a row.
    pub(super) row_length: usize,
}

/// Lines of the matrix of a picture with `channels`: what the kernel sees, ones for a
/// bias, and zeros.
pub(super) fn lines(channels: usize, kernel: usize) -> usize {
    (seen_lines(channels, kernel) + 1).next_multiple_of(LINES_AT_A_TIME)
}

fn seen_lines(channels: usize, kernel: usize) -> usize {
    channels * kernel * kernel
}

/// What the kernel sees of `x` at each place of some `rows`.
///
/// `x`: (1, channels, height, width), contiguous. Returns ([`lines`], places).
///
/// # Errors
/// A candle error, such as out of memory.
pub(super) fn unfold(x: &Tensor, window: Window, rows: Range<usize>) -> Result<Tensor> {
    run(&Unfolding::new(x, window, rows)?)
}

struct Unfolding<'a> {
    x: &'a Tensor,
    view: View,
}

impl<'a> Unfolding<'a> {
    fn new(x: &'a Tensor, window: Window, rows: Range<usize>) -> Result<Self> {
        expect_contiguous("a picture", x)?;
        let (batch, channels, height, width) = x.dims4()?;
        if batch != 1 {
            candle_core::bail!("one picture at a time is unfolded, not {batch}");
        }
        Ok(Self { x, view: View { channels, height, width, window, rows } })
    }
}

/// A picture and the places in it that a kernel comes to.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) window: Window,
    /// Rows of places.
    pub(super) rows: Range<usize>,
}

impl View {
    pub(super) fn places(&self) -> usize {
        self.rows.len() * self.window.row_length
    }

    /// Lines of the matrix.
    pub(super) fn lines(&self) -> usize {
        lines(self.channels, self.window.kernel)
    }

    /// Writes the matrix of the picture `x` ([`Self::lines`], [`Self::places`]).
    pub(super) fn unfold<N: Element>(&self, made: &mut [N], x: &[N]) {
        let seen = seen_lines(self.channels, self.window.kernel);
        made.par_chunks_mut(self.places()).enumerate().for_each(|(line, made)| {
            if line >= seen {
                made.fill(N::narrow(if line == seen { 1.0 } else { 0.0 }));
                return;
            }
            let rows = made.chunks_exact_mut(self.window.row_length).zip(self.rows.clone());
            rows.for_each(|(made, row)| self.fill_row(made, x, line, row));
        });
    }

    /// Writes what the kernel's number of `line` sees at the places of `row`.
    fn fill_row<N: Element>(&self, made: &mut [N], x: &[N], line: usize, row: usize) {
        let Window { kernel, stride, before, .. } = self.window;
        let (channel, within) = (line / (kernel * kernel), line % (kernel * kernel));
        let zero = N::narrow(0.0);
        let y = (row * stride + within / kernel).checked_sub(before).filter(|y| *y < self.height);
        let Some(y) = y else { return made.fill(zero) };
        let x = &x[(channel * self.height + y) * self.width..][..self.width];
        // The first place whose number is in the picture, and that number.
        let column = within % kernel;
        let first = before.saturating_sub(column).div_ceil(stride).min(made.len());
        let start = (first * stride + column).saturating_sub(before).min(x.len());
        let (outside, inside) = made.split_at_mut(first);
        outside.fill(zero);
        let x = &x[start..];
        let count = x.len().div_ceil(stride).min(inside.len());
        let (inside, beyond) = inside.split_at_mut(count);
        if stride == 1 {
            inside.copy_from_slice(&x[..count]);
        } else {
            let seen = x.iter().step_by(stride);
            inside.iter_mut().zip(seen).for_each(|(made, x)| *made = *x);
        }
        beyond.fill(zero);
    }
}

/// As `unfold.cu` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct UnfoldingCall {
    x: u64,
    y: u64,
    height: i32,
    width: i32,
    kernel: i32,
    stride: i32,
    before: i32,
    first_row: i32,
    row_length: i32,
    pixels: i32,
    seen: i32,
    tile: i32,
    tiles: i32,
}

impl Operation for Unfolding<'_> {
    type Call = UnfoldingCall;
    type Made<N: Element> = N;

    const NAME: &'static str = "unfolding";

    fn subject(&self) -> &Tensor {
        self.x
    }

    fn shape(&self) -> Shape {
        (self.view.lines(), self.view.places()).into()
    }

    fn compute<N: Element>(&self, made: &mut [N]) -> Result<()> {
        self.view.unfold(made, Elements::<N>::of(self.x)?.all());
        Ok(())
    }

    fn launch(&self, made: u64) -> Result<Launch<UnfoldingCall>> {
        let View { channels, height, width, window, rows } = &self.view;
        let Window { kernel, stride, before, row_length } = *window;
        let tiles = self.view.places().div_ceil(TILE);
        let call = UnfoldingCall {
            x: address(self.x)?,
            y: made,
            height: length(*height)?,
            width: length(*width)?,
            kernel: length(kernel)?,
            stride: length(stride)?,
            before: length(before)?,
            first_row: length(rows.start)?,
            row_length: length(row_length)?,
            pixels: length(self.view.places())?,
            seen: length(seen_lines(*channels, kernel))?,
            tile: length(TILE)?,
            tiles: length(tiles)?,
        };
        let blocks = self.view.lines() * tiles;
        Ok(Launch { kernel: "unfold", blocks, threads: THREADS, shared: 0, call, pack: 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernels::emulation::{assert_close, emulate, formats, numbers};
    use super::*;

    #[test]
    fn the_kernel_makes_the_very_matrix_that_the_loop_makes() {
        for (dtype, _) in formats(1.0) {
            // A kernel of one pixel, padding on all sides, a step of two, several tiles.
            for (side, channels, kernel, stride, before) in [
                (5, 2, 1, 1, 0),
                (6, 3, 3, 1, 1),
                (9, 2, 3, 2, 0),
                (7, 2, 3, 2, 1),
                (70, 1, 3, 1, 1),
                (1, 2, 3, 1, 1),
            ] {
                let x = numbers(&[1, channels, side, side + 2], 1, dtype);
                let row_length = (side + 2 + 2 * before - kernel) / stride + 1;
                let window = Window { kernel, stride, before, row_length };
                let rows = (side + 2 * before - kernel) / stride + 1;
                for rows in [0..rows, 1..rows, 0..rows.min(2)] {
                    let unfolding = Unfolding::new(&x, window, rows).unwrap();

                    assert_close(&emulate(&unfolding).unwrap(), &run(&unfolding).unwrap(), 0.0);
                }
            }
        }
    }
}
