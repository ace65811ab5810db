"""Counts the operations of diffusers' networks of Stable Diffusion, for the tests of src/model/stable_diffusion/cost.rs.

    python tests/data/count_stable_diffusion.py

Torch's FlopCounterMode on the meta device: no weight is made. Written with torch 2.11.0, diffusers 0.42.1,
transformers 5.23.0. The widths are those of the published 1.5 and XL.
"""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

CROSS_DOWN, DOWN, CROSS_UP, UP = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
PLAIN = dict(
    sample_size=64, cross_attention_dim=768, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8,
    down_block_types=(*3 * [CROSS_DOWN], DOWN), up_block_types=(UP, *3 * [CROSS_UP]),
)  # fmt: skip
XL = dict(
    sample_size=128, cross_attention_dim=2048, block_out_channels=(320, 640, 1280), attention_head_dim=(5, 10, 20),
    transformer_layers_per_block=(1, 2, 10), down_block_types=(DOWN, CROSS_DOWN, CROSS_DOWN),
    up_block_types=(CROSS_UP, CROSS_UP, UP), use_linear_projection=True, addition_embed_type="text_time",
    addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
)  # fmt: skip


def count(name, run):
    with FlopCounterMode(display=False) as counter:
        run()
    print(name, counter.get_total_flops())


def main():
    unet, added = UNet2DConditionModel(**PLAIN), dict(text_embeds=torch.empty(1, 1280), time_ids=torch.empty(1, 6))
    count("unet", lambda: unet(torch.empty(1, 4, 64, 64), torch.tensor(1.0), torch.empty(1, 77, 768)))
    xl = UNet2DConditionModel(**XL)
    latents, text = torch.empty(1, 4, 128, 128), torch.empty(1, 77, 2048)
    count("unet, xl", lambda: xl(latents, torch.tensor(1.0), text, added_cond_kwargs=added))
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        down_block_types=4 * ["DownEncoderBlock2D"], up_block_types=4 * ["UpDecoderBlock2D"],
    )  # fmt: skip
    count("decode", lambda: vae.decode(torch.empty(1, 4, 64, 64)))
    widths = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    clip = CLIPTextModel(CLIPTextConfig(**widths))
    count("text encoder", lambda: clip(torch.zeros(1, 77, dtype=torch.long)))


if __name__ == "__main__":
    with torch.device("meta"), torch.no_grad():
        main()
