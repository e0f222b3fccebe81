"""The UNet that draws one style: it learns to remove noise from latents, told by the prompt what they show."""

from dataclasses import dataclass
from typing import Final

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from tools.demo.autoencoder import LATENT_CELLS, LATENT_CHANNELS
from tools.demo.descent import Descent
from tools.demo.prompts import NO_DIGIT
from tools.demo.text_encoder import PROMPT_WIDTH

_CHANNELS: Final = (24, 24)
_STEPS: Final = 900
_BATCH: Final = 64
_NOISE_LEVELS: Final = 1000
_NO_DIGIT_SHARE: Final = 0.12
_AVERAGE_DECAY_MAX: Final = 0.998


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a denoiser is taught: latents, the digits they show, and prompt embeddings per label."""

    latents: Tensor
    labels: Tensor
    prompts: Tensor


def build_scheduler() -> DDIMScheduler:
    """Return the noise schedule: one that reaches pure noise, so that a few steps from pure noise suffice."""
    return DDIMScheduler(
        num_train_timesteps=_NOISE_LEVELS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",  # epsilon cannot be predicted where the signal is zero
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def train_denoiser(lessons: Lessons, *, seed: int) -> UNet2DConditionModel:
    """Return a UNet trained on the lessons; its weights are a running average over the last steps."""
    torch.manual_seed(seed)
    unet = _build().train().to(memory_format=torch.channels_last)
    average = AveragedModel(unet, avg_fn=_running_average)
    signal = build_scheduler().alphas_cumprod
    descent = Descent(unet.parameters(), steps=_STEPS, weight_decay=1e-3, warm_up=0.05)
    for step in range(_STEPS):
        loss = _loss(unet, lessons, signal)
        descent.step(loss)
        average.update_parameters(unet)
        if step % 100 == 99:
            print(f"denoiser: step {step + 1}, loss {loss.item():.4f}", flush=True)
    trained: UNet2DConditionModel = average.module
    return trained.eval().to(memory_format=torch.contiguous_format)


def _build() -> UNet2DConditionModel:
    """Return a UNet of 166,000 parameters: 8x8 and 4x4 cells, the prompt attended to in the middle block only."""
    return UNet2DConditionModel(
        sample_size=LATENT_CELLS,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=_CHANNELS,
        cross_attention_dim=PROMPT_WIDTH,
        norm_num_groups=8,
        attention_head_dim=4,
        use_linear_projection=True,
        down_block_types=("DownBlock2D",) * len(_CHANNELS),
        up_block_types=("UpBlock2D",) * len(_CHANNELS),
    )


def _loss(unet: UNet2DConditionModel, lessons: Lessons, signal: Tensor) -> Tensor:
    chosen = torch.randint(len(lessons.latents), (_BATCH,))
    clean = lessons.latents[chosen]
    noise = torch.randn_like(clean)
    level = _spread_noise_levels()
    keep = signal[level].sqrt().view(-1, 1, 1, 1)
    add = (1 - signal[level]).sqrt().view(-1, 1, 1, 1)
    noisy = (keep * clean + add * noise).contiguous(memory_format=torch.channels_last)
    predicted = unet(noisy, level, _choose_prompts(lessons, chosen)).sample
    return functional.mse_loss(predicted, keep * noise - add * clean)


def _spread_noise_levels() -> Tensor:
    """Return one noise level per picture of a batch, spread evenly: the loss varies less than with random ones."""
    return ((torch.arange(_BATCH) + torch.rand(1)) / _BATCH * _NOISE_LEVELS).long()


def _choose_prompts(lessons: Lessons, chosen: Tensor) -> Tensor:
    # Guidance subtracts what the model draws for an empty prompt, so it must have learnt that too.
    told = torch.where(torch.rand(_BATCH) < _NO_DIGIT_SHARE, NO_DIGIT, lessons.labels[chosen])
    return lessons.prompts[told, torch.randint(lessons.prompts.shape[1], (_BATCH,))]


def _running_average(average: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
    # Early steps count for little: the average follows closely at first and settles later.
    decay = min(_AVERAGE_DECAY_MAX, (1 + int(updates)) / (10 + int(updates)))
    return average.lerp(current, 1 - decay)
