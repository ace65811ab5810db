//! Latent pictures as tokens, and back.

use candle_core::{Result, Tensor};

/// Folds each 2×2 patch of latent pixels into one token.
///
/// `latents`: (batch, channels, height, width), both sides even. Returns
/// (batch, height/2 · width/2, channels · 4): tokens row by row, a token's
/// numbers ordered by channel, then row, then column.
///
/// # Errors
/// A candle shape error if a side is odd; sizes on the model's grid are not.
///
/// Source: diffusers 0.42.1, `QwenImageEditPipeline._pack_latents`.
pub(crate) fn pack_latents(latents: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = latents.dims4()?;
    latents
        .reshape((batch, channels, height / 2, 2, width / 2, 2))?
        .permute((0, 2, 4, 1, 3, 5))? // (batch, rows, columns, channels, 2, 2)
        .reshape((batch, (height / 2) * (width / 2), channels * 4))
}

/// The inverse of [`pack_latents`] for a picture of `rows` by `columns` tokens.
///
/// `tokens`: (batch, rows · columns, channels · 4). Returns (batch, channels,
/// 2 · rows, 2 · columns).
///
/// # Errors
/// A candle shape error if the number of tokens does not fit.
///
/// Source: diffusers 0.42.1, `QwenImageEditPipeline._unpack_latents`.
pub(crate) fn unpack_latents(tokens: &Tensor, rows: usize, columns: usize) -> Result<Tensor> {
    let (batch, _, numbers) = tokens.dims3()?;
    tokens
        .reshape((batch, rows, columns, numbers / 4, 2, 2))?
        .permute((0, 3, 1, 4, 2, 5))? // (batch, channels, rows, 2, columns, 2)
        .reshape((batch, numbers / 4, 2 * rows, 2 * columns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_token_holds_channel_by_channel_its_four_pixels_row_by_row() {
        let latents =
            Tensor::arange(0_u32, 32, &Device::Cpu).unwrap().reshape((1, 2, 4, 4)).unwrap();

        let tokens = pack_latents(&latents).unwrap();

        assert_eq!(tokens.dims(), &[1, 4, 8]);
        let second: Vec<u32> = tokens.get(0).unwrap().get(1).unwrap().to_vec1().unwrap();
        assert_eq!(second, [2, 3, 6, 7, 18, 19, 22, 23]);
        let back = unpack_latents(&tokens, 2, 2).unwrap();
        assert_eq!(
            back.flatten_all().unwrap().to_vec1::<u32>().unwrap(),
            (0..32).collect::<Vec<_>>()
        );
    }
}
