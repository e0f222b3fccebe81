"""Who judges the demo models: a reader of digits and a sorter of styles, both taught by real scans only."""

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.svm import SVC

from tools.demo.digits import DigitSet, Labels, Scans
from tools.demo.pictures import STYLES, colour, render, to_images, to_scans

Looks: TypeAlias = npt.NDArray[np.float64]

TOLERANCE: Final = 1.5
"""How much further from typical a picture may be than the oddest real picture of its style."""


class DigitReader:
    """A support vector machine that reads scans; it has never met a generated picture."""

    def __init__(self, taught_by: DigitSet) -> None:
        self._classifier: Final = SVC(C=10).fit(_flat(taught_by.scans), taught_by.labels)

    def read(self, scans: Scans) -> Labels:
        """Return the digit that each scan shows."""
        return np.asarray(self._classifier.predict(_flat(scans)))

    def score(self, scans: Scans, wanted: Labels) -> float:
        """Return the share of the scans that show the wanted digit."""
        return float(np.mean(self.read(scans) == wanted))


class StyleSorter:
    """Assigns a picture to the style whose real pictures have the most similar colours, if they are similar."""

    def __init__(self, taught_by: DigitSet) -> None:
        self._names: Final = tuple(STYLES)
        looks = [_looks(rendered(taught_by, name)) for name in self._names]
        self._typical: Final = np.stack([style.mean(axis=0) for style in looks])
        spread = [np.linalg.norm(style - style.mean(axis=0), axis=1).max() for style in looks]
        self._distance_max: Final = TOLERANCE * np.array(spread)

    def sort(self, images: Sequence[Image.Image]) -> list[str | None]:
        """Return the style of each picture; None if it resembles no style."""
        distances = np.linalg.norm(_looks(images)[:, None] - self._typical, axis=2)
        return [
            self._names[nearest] if picture[nearest] <= self._distance_max[nearest] else None
            for picture, nearest in zip(distances, distances.argmin(axis=1), strict=True)
        ]


def rendered(digits: DigitSet, style: str) -> list[Image.Image]:
    """Return the real scans as pictures in a style."""
    return to_images(colour(render(digits.scans), style))


def rescanned(digits: DigitSet, style: str) -> Scans:
    """Return the real scans after the whole way that a generated picture takes to the reader."""
    return to_scans(rendered(digits, style), style)


def _flat(scans: Scans) -> Scans:
    return scans.reshape(len(scans), -1)


def _looks(images: Sequence[Image.Image]) -> Looks:
    """Return the mean and the spread of each colour channel of each picture."""
    rgb = np.stack([np.asarray(image, dtype=np.float64) / 255 for image in images])
    return np.concatenate([rgb.mean(axis=(1, 2)), rgb.std(axis=(1, 2))], axis=1)
