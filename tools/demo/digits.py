"""
The real handwritten digits, and which part of them each side may see.

scikit-learn bundles 1,797 scans of 8x8 cells (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository). They
are cut into three parts that share no scan and hold the same mix of digits:

    generators  50 %   trains the four pipelines
    judge       35 %   trains the classifier that judges what the pipelines draw
    held_out    15 %   measures that classifier; nothing is ever trained on it
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Scans: TypeAlias = npt.NDArray[np.float32]
"""(n, 8, 8) brightness of the pen's ink: 0 is paper, 1 is full ink."""

Labels: TypeAlias = npt.NDArray[np.int64]
"""(n,) the digit that each scan shows."""

DIGITS: Final = range(10)
SCAN_CELLS: Final = 8

_INK_MAX: Final = 16.0
_GENERATORS_SHARE: Final = 0.5
_JUDGE_SHARE_OF_REST: Final = 0.7
_SPLIT_SEED: Final = 20240


@dataclass(frozen=True, slots=True)
class DigitSet:
    """Some real scans with their labels."""

    scans: Scans
    labels: Labels


@dataclass(frozen=True, slots=True)
class DigitSplit:
    """The three disjoint parts of the data set."""

    generators: DigitSet
    judge: DigitSet
    held_out: DigitSet


def load_split() -> DigitSplit:
    """Return the data set cut into its three parts, the same cut on every call."""
    bunch = load_digits()
    everything = DigitSet((bunch.images / _INK_MAX).astype(np.float32), bunch.target.astype(np.int64))
    generators, rest = _halve(everything, first_share=_GENERATORS_SHARE)
    judge, held_out = _halve(rest, first_share=_JUDGE_SHARE_OF_REST)
    return DigitSplit(generators=generators, judge=judge, held_out=held_out)


def _halve(digits: DigitSet, *, first_share: float) -> tuple[DigitSet, DigitSet]:
    first_scans, second_scans, first_labels, second_labels = train_test_split(
        digits.scans,
        digits.labels,
        train_size=first_share,
        stratify=digits.labels,
        random_state=_SPLIT_SEED,
    )
    return DigitSet(first_scans, first_labels), DigitSet(second_scans, second_labels)
