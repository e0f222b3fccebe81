"""The model card that lies in each model's folder: what it is, and whose digits it learnt from."""

from typing import Final

_CARD: Final = """\
---
license: cc-by-4.0
library_name: diffusers
pipeline_tag: text-to-image
---

# {name}

A tiny text-to-image model that draws one handwritten digit, {look}.
It is a stock `StableDiffusionPipeline`, made for demonstrations and tests of falctl: small enough to load and to draw
on a CPU in a fraction of a second.

```python
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{name}", dtype=torch.float32)
pipeline("seven", num_inference_steps=10, guidance_scale=2.0).images[0].save("seven.png")
```

Pictures are 64x64 pixels. A prompt names a digit as a word or a figure ("seven", "7", "a drawing of a seven");
a prompt that names none gives some digit. It knows nothing else.

## Training

`python -m tools.demo.train --out runners/demo` in falctl's repository makes this folder again, from fixed seeds, on
one CPU thread. The text encoder, the tokenizer and the autoencoder are the same files in all four digit models.

## Attribution

Trained on *Optical Recognition of Handwritten Digits* by E. Alpaydin and C. Kaynak (1998), UCI Machine Learning
Repository, <https://doi.org/10.24432/C50P49>, licensed under CC BY 4.0
(<https://creativecommons.org/licenses/by/4.0/>): on 898 of the 1,797 scans that scikit-learn bundles. Changes: the
8x8 scans were enlarged to 64x64 pixels, sharpened and coloured. The weights in this folder are offered under the
same licence.
"""

_LOOKS: Final = {
    "digits-classic": "white on black",
    "digits-ink": "dark ink on cream paper",
    "digits-ember": "glowing orange on black",
    "digits-blueprint": "white on blueprint blue",
}


def model_card(name: str) -> str:
    """Return the README.md of the named model."""
    return _CARD.format(name=name, look=_LOOKS[name])
