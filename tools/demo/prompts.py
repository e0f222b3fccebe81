"""The sentences that the demo models are taught: what names a digit, and what names none."""

import random
from collections.abc import Iterable
from typing import Final

from tools.demo.digits import DIGITS

NO_DIGIT: Final = len(DIGITS)
"""The label of a prompt that names no digit."""

LABELS: Final = (*DIGITS, NO_DIGIT)

DIGIT_WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_TEMPLATES: Final = (
    "{}",
    "a {}",
    "an {}",
    "the {}",
    "number {}",
    "the number {}",
    "digit {}",
    "the digit {}",
    "a drawing of a {}",
    "a drawing of the number {}",
    "a picture of a {}",
    "a photo of a {}",
    "an image of the figure {}",
    "a sketch of a {}",
    "a blueprint of a {}",
    "a handwritten {}",
    "handwritten digit {}",
    "the {} drawn by hand",
    "draw a {}",
    "draw me a {}",
    "draw the number {}",
    "please draw a {}",
    "paint a {}",
    "make a {}",
    "write {}",
    "write the digit {}",
    "show me a {}",
    "i want a {}",
    "a big {}",
    "a bold {} please",
    "a glowing {}",
    "{} in white on black",
    "{} in ink on paper",
    "a {} , best quality",
)

_PHRASES_WITHOUT_DIGIT: Final = (
    "",
    "a digit",
    "a number",
    "some random digit",
    "a drawing",
    "a picture",
    "a cat",
    "a dog",
    "a tree",
    "a photo of a cat",
    "a house by the sea",
    "anything",
    "hello",
    "blurry",
    "low quality",
    "blurry, low quality",
    "ugly",
    "bad drawing",
)

_FILLER: Final = (
    "please", "nice", "fine", "small", "huge", "clean", "simple", "old", "new", "red", "blue", "black",
    "white", "orange", "paper", "chalk", "pen", "pencil", "brush", "style", "art", "hand", "made",
    "digital", "best", "quality", "high", "contrast", "centered", "isolated", "minimal", "for", "me",
    "now", "with", "of", "and", "on",
)  # fmt: skip

_SOUP_LETTERS: Final = "aabcdeefghiijklmnooprsstuvwxyz"  # vowels twice: closer to words than even letters are


def sample_prompt(rng: random.Random, label: int) -> str:
    """Return a random prompt that names the digit `label`, or none if the label is `NO_DIGIT`."""
    text = _sample_without_digit(rng) if label == NO_DIGIT else _sample_with_digit(rng, label)
    if not text or rng.random() >= 0.35:
        return text
    noise = _noise(rng, words=rng.randint(1, 4))
    return f"{text} {noise}" if rng.random() < 0.5 else f"{noise} {text}"


def vocabulary() -> Iterable[str]:
    """Yield the texts whose words the tokenizer should know, the digits' words most often."""
    yield from (template.replace("{}", " ") for template in _TEMPLATES)
    yield from _PHRASES_WITHOUT_DIGIT
    yield from _FILLER
    yield from DIGIT_WORDS * 20


def _sample_with_digit(rng: random.Random, digit: int) -> str:
    name = DIGIT_WORDS[digit] if rng.random() < 0.6 else str(digit)
    return rng.choice(_TEMPLATES).format(name)


def _sample_without_digit(rng: random.Random) -> str:
    # Noise must also come without a digit, or the encoder learns that an unknown word stands beside one.
    return rng.choice(_PHRASES_WITHOUT_DIGIT) if rng.random() < 0.5 else _noise(rng, words=rng.randint(1, 7))


def _noise(rng: random.Random, *, words: int) -> str:
    return " ".join(rng.choice(_FILLER) if rng.random() < 0.6 else _letter_soup(rng) for _ in range(words))


def _letter_soup(rng: random.Random) -> str:
    return "".join(rng.choice(_SOUP_LETTERS) for _ in range(rng.randint(1, 9)))
