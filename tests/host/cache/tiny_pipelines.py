"""
Writes tiny diffusers pipelines with random weights, the same on every run, with no download; a test's model folders.

    python -m tests.host.cache.tiny_pipelines FOLDER [NAME ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
import transformers
from tokenizers import pre_tokenizers

WIDTH: Final = 32
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_MERGES: Final = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]


def build(name: str) -> Any:
    """Return the pipeline *name* of `NAMES`, in float32."""
    torch.manual_seed(0)
    return _BUILD[name]()


def write(folder: Path, name: str) -> Path:
    """Save the pipeline *name* below *folder* as safetensors; return its own folder."""
    path = folder / name
    build(name).save_pretrained(path, safe_serialization=True)
    return path


def _clip_tokenizer() -> Any:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in _MERGES), _BOS, _EOS]
    return transformers.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=_MERGES,
        model_max_length=77,
        bos_token=_BOS,
        eos_token=_EOS,
        unk_token=_EOS,
        pad_token=_EOS,
    )


def _clip(tokenizer: Any, *, projects: bool = False) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    return kind(config)


def _t5_tokenizer(length_max: int = 64) -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(c), -3.0) for c in range(33, 127)]
    pieces += [("▁" + word, -1.0) for word in ("a", "the", "cat", "dog", "of", "photo")]
    pieces += [(f"<extra_id_{i}>", 0.0) for i in range(9, -1, -1)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=10, model_max_length=length_max)


def _t5(tokenizer: Any) -> Any:
    config = transformers.T5Config(
        vocab_size=len(tokenizer) + 8,
        d_model=WIDTH,
        d_kv=8,
        d_ff=37,  # odd, so that some slots end off the alignment
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return transformers.T5EncoderModel(config)


def _vae(*, flow: bool = False) -> Any:
    shifted = {
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.0609,
        "scaling_factor": 1.5,
    }
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16,) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        **(shifted if flow else {}),
    )


_unet = partial(
    diffusers.UNet2DConditionModel,
    sample_size=8,
    in_channels=4,
    out_channels=4,
    layers_per_block=1,
    block_out_channels=(32, 64),
    norm_num_groups=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)
_BETAS: Final[dict[str, Any]] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _sd15() -> Any:
    tokenizer = _clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=WIDTH, attention_head_dim=2),
        scheduler=diffusers.DDIMScheduler(
            clip_sample=False, set_alpha_to_one=False, steps_offset=1, **_BETAS
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd15_other_unet() -> Any:
    """The text encoder and the VAE of sd15, byte for byte, and a UNet of its own."""
    pipe = _sd15()
    torch.manual_seed(7)
    pipe.unet = diffusers.UNet2DConditionModel.from_config(pipe.unet.config)
    return pipe


def _sdxl() -> Any:
    tokenizer, tokenizer_2 = _clip_tokenizer(), _clip_tokenizer()
    unet = _unet(
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(tokenizer),
        text_encoder_2=_clip(tokenizer_2, projects=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        add_watermarker=False,
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **_BETAS),
    )


def _sd3(layers: int = 2) -> Any:
    tokenizer, tokenizer_2, tokenizer_3 = _clip_tokenizer(), _clip_tokenizer(), _t5_tokenizer()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=WIDTH,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=32,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        vae=_vae(flow=True),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=_clip(tokenizer, projects=True),
        tokenizer=tokenizer,
        text_encoder_2=_clip(tokenizer_2, projects=True),
        tokenizer_2=tokenizer_2,
        text_encoder_3=_t5(tokenizer_3),
        tokenizer_3=tokenizer_3,
    )


def _flux(layers: int = 1, single_layers: int = 2) -> Any:
    tokenizer, tokenizer_2 = _clip_tokenizer(), _t5_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=layers,
        num_single_layers=single_layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.FluxPipeline(
        transformer=transformer,
        vae=_vae(flow=True),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=_clip(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=_t5(tokenizer_2),
        tokenizer_2=tokenizer_2,
    )


def _pixart() -> Any:
    tokenizer = _t5_tokenizer(300)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=32,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=_t5(tokenizer),
        vae=_vae(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def _ddpm() -> Any:
    unet = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler())


_BUILD: Final[dict[str, Callable[[], Any]]] = {
    "sd15": _sd15,
    "sd15-other-unet": _sd15_other_unet,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
    "pixart": _pixart,
    "ddpm": _ddpm,
    # Their transformers are most of them, as in real ones.
    "sd3-deep": partial(_sd3, layers=12),
    "flux-deep": partial(_flux, layers=4, single_layers=16),
}
NAMES: Final = tuple(_BUILD)
ARCHITECTURES: Final = ("sd15", "sdxl", "sd3", "flux", "pixart", "ddpm")


if __name__ == "__main__":
    for wanted in sys.argv[2:] or NAMES:
        print(write(Path(sys.argv[1]), wanted))
