"""The variational autoencoder that all four styles share: 64x64 RGB to 8x8 latents of 4 channels, and back."""

from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from tools.demo.descent import Descent
from tools.demo.pictures import PICTURE_PX

LATENT_CHANNELS: Final = 4
LATENT_CELLS: Final = 8

_CHANNELS: Final = (8, 8, 16, 16)  # one level per halving, from 64 pixels to 8 cells
_STEPS: Final = 1400
_BATCH: Final = 16
_ENCODE_BATCH: Final = 128
_L1_WEIGHT: Final = 0.2
_KL_WEIGHT: Final = 2e-4


def train_autoencoder(pictures: Tensor, *, seed: int) -> AutoencoderKL:
    """
    Return an autoencoder of (n, 3, 64, 64) pictures in all styles, rounded to what half precision can store.

    The denoisers must be trained against the weights that will be on disk, so the rounding happens here.
    """
    torch.manual_seed(seed)
    # channels_last is the faster layout for convolutions this narrow on a CPU.
    model = _build().train().to(memory_format=torch.channels_last)
    descent = Descent(model.parameters(), steps=_STEPS, weight_decay=1e-4, warm_up=0.1)
    for step in range(_STEPS):
        batch = pictures[torch.randint(len(pictures), (_BATCH,))]
        loss = _loss(model, batch.contiguous(memory_format=torch.channels_last))
        descent.step(loss)
        if step % 100 == 99:
            print(f"autoencoder: step {step + 1}, loss {loss.item():.5f}", flush=True)
    model = model.eval().to(memory_format=torch.contiguous_format).half().float()
    spread = _encode_unscaled(model, pictures).std().item()
    model.register_to_config(scaling_factor=round(1 / spread, 5))
    return model


def encode_pictures(model: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Return the (n, 4, 8, 8) latents of the pictures, scaled to unit spread as the denoiser expects them."""
    return _encode_unscaled(model, pictures) * float(model.config.scaling_factor)


def _build() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        sample_size=PICTURE_PX,
        block_out_channels=_CHANNELS,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=True,  # without it flat paper comes out visibly tinted
        down_block_types=("DownEncoderBlock2D",) * len(_CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(_CHANNELS),
    )


def _loss(model: AutoencoderKL, batch: Tensor) -> Tensor:
    latent = model.encode(batch).latent_dist
    decoded = model.decode(latent.sample()).sample
    divergence = 0.5 * (latent.mean**2 + latent.var - 1 - latent.logvar).mean()
    distance = functional.mse_loss(decoded, batch) + _L1_WEIGHT * functional.l1_loss(decoded, batch)
    return distance + _KL_WEIGHT * divergence


def _encode_unscaled(model: AutoencoderKL, pictures: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.encode(batch).latent_dist.mean for batch in pictures.split(_ENCODE_BATCH)])
