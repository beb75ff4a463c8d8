"""Pictures with noise, blur or a small shift, reproducible by picture and seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageFilter
from torch.utils.data import Dataset

from fpe_lightning.data.sources import LabelledImages

Kind = Literal["noise", "blur", "shift"]
KINDS: tuple[Kind, ...] = ("noise", "blur", "shift")
_RULE = 1  # raise when any picture changes: it is part of the fingerprint


@dataclass(frozen=True)
class Corruption:
    """A change of a picture.

    Attributes:
        kind: ``"noise"`` (Gaussian, drawn for every pixel and channel), ``"blur"`` (Gaussian), or ``"shift"``
            (up, down, left or right at random; the border is repeated).
        level: The standard deviation of the noise as a share of the full range, or of the blur in pixels, or the
            distance of the shift in whole pixels.

    Raises:
        ValueError: If the kind is unknown, the level is not positive, or a shift is not whole.

    Example:
        >>> image = Image.new("RGB", (4, 4), "white")
        >>> image.putpixel((1, 1), (0, 0, 0))
        >>> moved = Corruption("shift", 1)(image, np.random.default_rng(0))
        >>> [(x, y) for x in range(4) for y in range(4) if moved.getpixel((x, y)) == (0, 0, 0)]
        [(2, 1)]
    """

    kind: Kind
    level: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"A corruption has to be 'noise', 'blur' or 'shift', found {self.kind!r}.")
        if not self.level > 0 or (self.kind == "shift" and self.level != int(self.level)):
            asked = "a positive whole number of pixels" if self.kind == "shift" else "positive"
            raise ValueError(f"The level of {self.kind!r} has to be {asked}, found {self.level}.")

    @property
    def name(self) -> str:
        """Kind and level, such as ``"noise=0.1"``."""
        return f"{self.kind}={self.level:g}"

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """Return the corrupted picture, of the same size and mode."""
        if self.kind == "blur":
            return image.filter(ImageFilter.GaussianBlur(self.level))
        pixels = np.asarray(image)
        if self.kind == "noise":
            drawn = pixels + 255 * self.level * generator.standard_normal(pixels.shape)
            return Image.fromarray((drawn.clip(0, 255) + 0.5).astype(np.uint8))
        # A shift takes every row or column from a neighbour; the border repeats.
        axis, sign = divmod(int(generator.integers(4)), 2)
        size = pixels.shape[axis]
        source = (np.arange(size) - (2 * sign - 1) * int(self.level)).clip(0, size - 1)
        return Image.fromarray(np.ascontiguousarray(pixels.take(source, axis)))


@dataclass(frozen=True)
class CorruptedImages(Dataset[tuple[Any, int]]):
    """Chosen pictures of a data set, each corrupted.

    The random numbers of a picture depend only on the seed, the kind and the number of the picture. So a higher level
    is a stronger form of the same noise, or a longer shift in the same direction.

    Attributes:
        images: Pairs of PIL image and class number.
        corruption: The change of each picture.
        indices: Numbers of the chosen pictures.
        seed: Seed of the random numbers, not negative.
    """

    images: LabelledImages
    corruption: Corruption
    indices: Sequence[int]
    seed: int = 0

    @property
    def classes(self) -> Sequence[str]:
        """Name of each class number."""
        return self.images.classes

    @property
    def fingerprint(self) -> str:
        """Digest of the pictures and of their changes."""
        recipe = [_RULE, self.images.fingerprint, asdict(self.corruption), list(self.indices), self.seed]
        return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return the corrupted picture and its class number."""
        number = self.indices[index]
        image, label = self.images[number]
        generator = np.random.default_rng((self.seed, KINDS.index(self.corruption.kind), number))
        return self.corruption(image, generator), label
