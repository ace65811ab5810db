//! Convolutions of a picture whose rows come band by band.
//!
//! A row can be made once the last row that its kernel sees has come. So of each band a
//! convolution makes those rows that are complete, and keeps the few rows that the next
//! ones see, too. Nothing is computed twice, and each row is the same, to the bit, as if
//! all had come together; in memory there are bands, not pictures. A picture that comes as
//! one band takes the way of [`Conv2d::forward`], and nothing is copied.

use candle_core::{Result, Tensor};

use super::direct::Sides;
use super::{Call, Conv2d};

/// The next rows of a picture: (batch, channels, rows, width).
#[derive(Debug, Clone)]
pub struct Band {
    /// None if there are none yet.
    pub rows: Option<Tensor>,
    /// Whether no other rows come after these.
    pub is_last: bool,
}

impl Band {
    /// The same with what `change` makes of the rows, each by itself.
    ///
    /// # Errors
    /// What `change` fails with.
    pub fn map(self, change: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { rows: self.rows.map(|rows| change(&rows)).transpose()?, ..self })
    }
}

/// A convolution on its way down a picture.
pub struct RollingConv<'a> {
    conv: &'a Conv2d,
    sides: Sides,
    /// Those rows that are still to be seen.
    kept: Option<Tensor>,
    /// Which of the picture's rows is the first of these.
    first_kept: usize,
    /// How many rows have been made.
    made: usize,
}

impl<'a> RollingConv<'a> {
    /// At the top of a picture.
    #[must_use]
    pub fn new(conv: &'a Conv2d) -> Self {
        Self { conv, sides: Sides::AsTheyAre, kept: None, first_kept: 0, made: 0 }
    }

    /// The same, whose picture is seen as [`Conv2d::forward_doubled`] sees it.
    #[must_use]
    pub fn doubled(conv: &'a Conv2d) -> Self {
        Self { sides: Sides::Doubled, ..Self::new(conv) }
    }

    /// The rows that are complete with `band`.
    ///
    /// # Errors
    /// As [`Conv2d::forward`].
    pub fn push(&mut self, band: Band) -> Result<Band> {
        self.push_onto(None, band)
    }

    /// The same, added to rows that have waited for them.
    ///
    /// # Errors
    /// As [`Conv2d::forward`].
    pub fn push_onto(&mut self, residual: Option<&mut WaitingRows>, band: Band) -> Result<Band> {
        let Band { rows, is_last } = band;
        let Some(x) = joined(self.kept.take(), rows)? else {
            return Ok(Band { rows: None, is_last });
        };
        let ready = self.ready(self.first_kept + x.dim(2)?, is_last);
        let made = (ready > self.made).then(|| self.make(&x, ready, residual)).transpose()?;
        self.made = self.made.max(ready);
        if !is_last {
            self.keep(&x)?;
        }
        Ok(Band { rows: made, is_last })
    }

    /// How many rows can be made if `seen` rows of the picture have come.
    fn ready(&self, seen: usize, is_last: bool) -> usize {
        let Conv2d { kernel, stride, padding, .. } = self.conv;
        let seen = self.sides.zoom() * seen;
        if is_last {
            return self.conv.places(seen);
        }
        (seen + padding.sides().0 + stride).saturating_sub(*kernel) / stride
    }

    /// The rows up to `ready` that have not been made; `x`: the picture from the first row
    /// that was kept.
    fn make(&self, x: &Tensor, ready: usize, residual: Option<&mut WaitingRows>) -> Result<Tensor> {
        // The first row of a picture, and of what is kept, is a place of the kernel.
        let above = self.sides.zoom() * self.first_kept / self.conv.stride;
        let rows = self.made - above..ready - above;
        let residual = residual.map(|waiting| waiting.take(rows.len())).transpose()?;
        self.conv.make(Call { x, sides: self.sides, rows, residual: residual.as_ref() })
    }

    /// Keeps of `x` what the next row sees.
    fn keep(&mut self, x: &Tensor) -> Result<()> {
        let next = (self.made * self.conv.stride).saturating_sub(self.conv.padding.sides().0);
        let next = next / self.sides.zoom();
        self.kept = below(x, next - self.first_kept)?;
        self.first_kept = next;
        Ok(())
    }
}

/// Rows that wait for others, which are made of them with a delay.
#[derive(Default)]
pub struct WaitingRows(Option<Tensor>);

impl WaitingRows {
    /// The rows of `band` wait, too.
    ///
    /// # Errors
    /// A candle error if they are not of one picture.
    pub fn add(&mut self, band: &Band) -> Result<()> {
        self.0 = joined(self.0.take(), band.rows.clone())?;
        Ok(())
    }

    /// The first `count` of them, which wait no longer.
    ///
    /// # Errors
    /// A candle error if there are fewer.
    pub fn take(&mut self, count: usize) -> Result<Tensor> {
        let Some(waiting) = self.0.take() else { candle_core::bail!("no rows wait") };
        if waiting.dim(2)? == count {
            return Ok(waiting);
        }
        self.0 = below(&waiting, count)?;
        waiting.narrow(2, 0, count)
    }
}

/// The rows of `above`, then those of `below`.
fn joined(above: Option<Tensor>, below: Option<Tensor>) -> Result<Option<Tensor>> {
    match (above, below) {
        (Some(above), Some(below)) => Tensor::cat(&[above, below], 2).map(Some),
        (above, below) => Ok(above.or(below)),
    }
}

/// A copy of the rows of `x` from `first` on, if there are any: the others are freed.
fn below(x: &Tensor, first: usize) -> Result<Option<Tensor>> {
    let count = x.dim(2)? - first;
    (count > 0).then(|| x.narrow(2, first, count)?.force_contiguous()).transpose()
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::super::super::kernels::emulation::{assert_close, numbers};
    use super::super::Padding;
    use super::*;

    /// What `layer` makes of `x` in bands of `heights`, again and again.
    fn in_bands(
        x: &Tensor,
        heights: &[usize],
        mut layer: impl FnMut(Band) -> Result<Band>,
    ) -> Tensor {
        let (mut made, mut first, all) = (Vec::new(), 0, x.dim(2).unwrap());
        for height in heights.iter().cycle() {
            let count = (*height).min(all - first);
            let rows = Some(x.narrow(2, first, count).unwrap());
            first += count;
            let band = layer(Band { rows, is_last: first == all }).unwrap();
            made.extend(band.rows);
            if first == all {
                break;
            }
        }
        Tensor::cat(&made, 2).unwrap()
    }

    #[test]
    fn rows_that_come_in_bands_are_convolved_as_if_they_came_together() {
        for (dtype, kernel, padding, stride) in [
            (DType::F32, 3, Padding::Around(1), 1),
            (DType::F32, 1, Padding::Around(0), 1),
            (DType::F32, 3, Padding::RightBottom, 2),
            (DType::F32, 5, Padding::Around(2), 1),
            (DType::BF16, 3, Padding::Around(1), 1),
        ] {
            let x = numbers(&[2, 5, 13, 12], 1, dtype);
            let weight = numbers(&[4, 5, kernel, kernel], 2, dtype);
            let conv = Conv2d::new(&weight, &numbers(&[4], 3, dtype), padding, stride).unwrap();
            let whole = conv.forward(&x).unwrap();
            let doubled = (stride == 1).then(|| conv.forward_doubled(&x).unwrap());
            for heights in [&[1][..], &[2], &[3], &[4, 1], &[1, 6], &[12], &[13], &[99]] {
                let mut rolling = RollingConv::new(&conv);
                assert_close(&in_bands(&x, heights, |band| rolling.push(band)), &whole, 0.0);

                let Some(doubled) = &doubled else { continue };
                let mut rolling = RollingConv::doubled(&conv);
                assert_close(&in_bands(&x, heights, |band| rolling.push(band)), doubled, 0.0);
            }
        }
    }

    #[test]
    fn rows_wait_for_those_that_are_added_to_them() {
        let x = numbers(&[1, 4, 11, 9], 1, DType::F32);
        let weight = numbers(&[4, 4, 3, 3], 2, DType::F32);
        let bias = numbers(&[4], 3, DType::F32);
        let conv = Conv2d::new(&weight, &bias, Padding::Around(1), 1).unwrap();
        let expected = conv.forward_onto(&x, &conv.forward(&x).unwrap()).unwrap();
        for heights in [&[1][..], &[3], &[2, 5], &[11]] {
            let (mut first, mut second) = (RollingConv::new(&conv), RollingConv::new(&conv));
            let mut waiting = WaitingRows::default();
            let made = in_bands(&x, heights, |band| {
                waiting.add(&band)?;
                second.push_onto(Some(&mut waiting), first.push(band)?)
            });

            assert_close(&made, &expected, 0.0);
        }
    }

    #[test]
    fn no_more_is_kept_than_the_next_row_sees() {
        let x = numbers(&[1, 1, 40, 3], 1, DType::F32);
        let weight = numbers(&[1, 1, 3, 3], 2, DType::F32);
        let conv = |padding, stride| {
            Conv2d::new(&weight, &numbers(&[1], 3, DType::F32), padding, stride).unwrap()
        };
        let (around, halving) = (conv(Padding::Around(1), 1), conv(Padding::RightBottom, 2));
        let kept = |mut rolling: RollingConv| {
            rolling.push(Band { rows: Some(x.clone()), is_last: false }).unwrap();
            rolling.kept.unwrap().dim(2).unwrap()
        };

        assert_eq!(kept(RollingConv::new(&around)), 2);
        assert_eq!(kept(RollingConv::doubled(&around)), 1);
        // Two rows of forty are left over, and seen with the next one.
        assert_eq!(kept(RollingConv::new(&halving)), 2);
    }
}
