"""Four tiny trained text-to-image models, each a folder that diffusers loads: where they are."""

from pathlib import Path
from typing import Final

DEMO_MODELS: Final[tuple[str, ...]] = ("digits-classic", "digits-ink", "digits-ember", "digits-blueprint")


def demo_model_path(name: str) -> Path:
    """
    Return the folder of the named model.

    Raises: LookupError if no demo model has this name.
    """
    if name not in DEMO_MODELS:
        message = f"unknown demo model {name!r}; there are {', '.join(DEMO_MODELS)}"
        raise LookupError(message)
    return Path(__file__).parent / name
