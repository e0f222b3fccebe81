"""The CLIP text encoder of the demo, which learns to say which digit a prompt names."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.demo.descent import Descent
from tools.demo.prompts import DIGIT_WORDS, LABELS, NO_DIGIT, sample_prompt, vocabulary
from tools.demo.tokenizer import PROMPT_TOKENS, learn_tokenizer

PROMPT_WIDTH: Final = 32
"""Numbers per token of an encoded prompt."""

_STEPS: Final = 500
_BATCH: Final = 64
_LAYERS: Final = 2
_HEADS: Final = 4
_ENCODE_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """A trained text encoder with its tokenizer."""

    tokenizer: CLIPTokenizer
    model: CLIPTextModel

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the (n, 77, 32) embeddings of the prompts, as the pipeline computes them."""
        with torch.no_grad():
            batches = _tokenize(self.tokenizer, prompts).split(_ENCODE_BATCH)
            return torch.cat([self.model(batch).last_hidden_state for batch in batches])


def train_prompt_encoder(*, seed: int) -> PromptEncoder:
    """
    Return an encoder trained to name the prompted digit at every position from the end token on.

    Padding repeats the end token, so those are most of the positions that the denoiser attends to.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = learn_tokenizer(vocabulary())
    model = _build(tokenizer).train()
    head = torch.nn.Linear(PROMPT_WIDTH, len(LABELS))
    descent = Descent([*model.parameters(), *head.parameters()], steps=_STEPS, weight_decay=1e-2, warm_up=0.3)
    for step in range(_STEPS):
        labels = [rng.choice(LABELS) for _ in range(_BATCH)]
        ids = _tokenize(tokenizer, [sample_prompt(rng, label) for label in labels])
        loss = _naming_loss(head(model(ids).last_hidden_state), labels, ended=_ended(ids, tokenizer))
        descent.step(loss)
        if step % 100 == 99:
            print(f"text encoder: step {step + 1}, loss {loss.item():.5f}", flush=True)
    return PromptEncoder(tokenizer, model.eval())


def encode_training_prompts(encoder: PromptEncoder, *, seed: int) -> Tensor:
    """Return (11, 128, 77, 32) embeddings of prompts for each label, the last of which names no digit."""
    rng = random.Random(seed)
    prompts = [text for label in LABELS for text in _training_prompts(rng, label)]
    return encoder.encode(prompts).unflatten(0, (len(LABELS), -1))


def _training_prompts(rng: random.Random, label: int) -> list[str]:
    # The empty prompt is what guidance compares with, and the bare names are what most people type.
    certain = [""] * 96 if label == NO_DIGIT else [DIGIT_WORDS[label], str(label)] * 8
    return certain + [sample_prompt(rng, label) for _ in range(128 - len(certain))]


def _build(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=PROMPT_WIDTH,
            intermediate_size=2 * PROMPT_WIDTH,
            projection_dim=PROMPT_WIDTH,
            num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS,
            max_position_embeddings=PROMPT_TOKENS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    ids: Tensor = tokenizer(
        list(prompts), padding="max_length", max_length=PROMPT_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def _ended(ids: Tensor, tokenizer: CLIPTokenizer) -> Tensor:
    """Return a (n, 77) mask that is 1 from the first end token of each prompt on."""
    return ((ids == tokenizer.eos_token_id).cumsum(1) > 0).float()


def _naming_loss(logits: Tensor, labels: Sequence[int], *, ended: Tensor) -> Tensor:
    target = torch.tensor(labels)[:, None].expand(-1, PROMPT_TOKENS)
    entropy = functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")
    return ((entropy * ended).sum(1) / ended.sum(1)).mean()
