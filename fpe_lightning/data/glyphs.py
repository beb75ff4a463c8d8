"""Pictures of the 94 printable ASCII characters, drawn from the fonts that ship with matplotlib.

This data set needs no download. It has real type designs and many classes. Validation and test fonts never occur in
training, so a classifier has to generalise from some designs of a letter to others.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFont, features
from torch.utils.data import Dataset

CHARACTERS = tuple(map(chr, range(ord("!"), ord("~") + 1)))
"""The 94 printable ASCII characters without the space; their order is the order of the labels."""

FONTS = Path(__file__).parents[1] / "assets" / "fonts"
"""Fonts of this package."""

STYLES: dict[str, str] = {
    "DejaVuSans": "sans serif",
    "DejaVuSans-Bold": "bold sans serif",
    "DejaVuSans-Oblique": "italic sans serif",
    "DejaVuSans-BoldOblique": "bold italic sans serif",
    "DejaVuSansMono": "typewriter",
    "DejaVuSansMono-Bold": "bold typewriter",
    "DejaVuSansMono-Oblique": "italic typewriter",
    "DejaVuSansMono-BoldOblique": "bold italic typewriter",
    "DejaVuSerif": "serif",
    "DejaVuSerif-Bold": "bold serif",
    "DejaVuSerif-Italic": "italic serif",
    "DejaVuSerif-BoldItalic": "bold italic serif",
    "STIXGeneral": "serif",
    "STIXGeneralBol": "bold serif",
    "STIXGeneralItalic": "italic serif",
    "STIXGeneralBolIta": "bold italic serif",
    "cmb10": "bold serif",
    "cmr10": "serif",
    "cmss10": "sans serif",
    "cmti10": "italic serif",
    "cmtt10": "typewriter",
}
"""The text faces among matplotlib's fonts, with the words that describe each in a caption."""

_HELD_OUT = {
    "val": ("DejaVuSansMono-Bold", "DejaVuSerif", "STIXGeneralItalic", "cmtt10"),
    "test": ("DejaVuSans-BoldOblique", "STIXGeneralBolIta", "cmr10", "cmss10"),
}
SPLITS: dict[str, tuple[str, ...]] = {
    "train": tuple(font for font in STYLES if font not in _HELD_OUT["val"] + _HELD_OUT["test"]),
    **_HELD_OUT,
}
"""Fonts of each split: no font is in two of them, and each mixes designs, weights and slants."""

SIZES = {"train": 128 * len(CHARACTERS), "val": 32 * len(CHARACTERS), "test": 32 * len(CHARACTERS)}
"""Default number of pictures: 12,032, 3,008 and 3,008, the same number of every class."""

# TeX's text encoding has other signs in these places (curly quotes, inverted marks, dashes, accents).
_TEX_TEXT = frozenset("\"'<>\\^_`{|}~")
NOT_DRAWN: dict[str, frozenset[str]] = {
    "cmb10": _TEX_TEXT,
    "cmr10": _TEX_TEXT,
    "cmss10": _TEX_TEXT,
    "cmti10": _TEX_TEXT | {"$"},  # this font has a pound sign in the place of the dollar
    "cmtt10": frozenset("'`"),
}
"""Characters that a font draws as another sign; its pictures omit them."""

_RULE = 1  # raise when any picture changes: it is part of the fingerprint
_PIXELS = 32
_OVERSAMPLING = 2  # the warp runs at twice the size, and averages reduce its result
_EM = 44  # size of the font in the undistorted master drawing, in oversampled pixels
_MASTER = 96


class GlyphDataset(Dataset[tuple[Any, int]]):
    """Pictures of printed characters under small random distortions, with fonts disjoint between the splits.

    Picture ``index`` shows character ``index % 94``. A generator seeded with ``(seed, split, index)`` draws its font,
    rotation, scale, shear, shift, contrast, polarity and noise: the same on every process and for every size.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: Number of pictures; None means 12,032 for training and 3,008 for the others.
        seed: Not negative; another seed gives other pictures of the same fonts.
        transform: Called with each 32x32 RGB picture; None yields the ``PIL.Image.Image`` itself.

    Raises:
        ValueError: If the split is unknown, or the size or seed is out of range.

    Attributes:
        classes: Names of the 94 classes, the lower-case Unicode names, such as ``"latin small letter a"``.
        fonts: Names of the fonts of this split.
        prompts: Caption templates (one for each style of all fonts) for zero-shot classification.

    Example:
        >>> data = GlyphDataset("test", size=94)
        >>> image, label = data[64]
        >>> image.size, image.mode, data.classes[label]
        ((32, 32), 'RGB', 'latin small letter a')
    """

    classes: tuple[str, ...] = tuple(unicodedata.name(character).lower() for character in CHARACTERS)
    prompts: tuple[str, ...] = tuple(f"{style} {{}}" for style in sorted(set(STYLES.values())))

    def __init__(
        self,
        split: str = "train",
        size: int | None = None,
        seed: int = 0,
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"GlyphDataset has no split {split!r}; choose one of {', '.join(map(repr, SPLITS))}.")
        if size is not None and size < 1:
            raise ValueError(f"GlyphDataset needs a size of at least 1 picture, got {size}.")
        if seed < 0:
            raise ValueError(f"GlyphDataset needs a seed of 0 or more, got {seed}.")
        self.split = split
        self.size = SIZES[split] if size is None else size
        self.seed = seed
        self.transform = transform
        self.fonts = SPLITS[split]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return picture ``index``, after the transform if there is one, and its label."""
        label, font, generator = self._draw(index)
        image = render(font, CHARACTERS[label], generator)
        return (image if self.transform is None else self.transform(image)), label

    def caption(self, index: int) -> str:
        """Describe picture ``index`` in words: the style of its font, then the name of its character.

        Example:
            >>> GlyphDataset("test").caption(64)
            'bold italic sans serif latin small letter a'
        """
        label, font, _ = self._draw(index)
        return f"{STYLES[font]} {self.classes[label]}"

    @property
    def labels(self) -> np.ndarray:
        """``(size,)`` int64 class numbers, without drawing a picture."""
        return np.arange(self.size) % len(CHARACTERS)

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex over everything that decides the pictures: rule, renderer, fonts, split, size and seed."""
        recipe = {
            "rule": _RULE,
            "renderer": [PIL.__version__, features.version("freetype2")],
            "fonts": {font: hashlib.sha256(font_path(font).read_bytes()).hexdigest() for font in self.fonts},
            "split": self.split,
            "size": self.size,
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def _draw(self, index: int) -> tuple[int, str, np.random.Generator]:
        """Return the label and font of a picture, and the generator for its distortion."""
        if not 0 <= index < self.size:
            raise IndexError(f"GlyphDataset has pictures 0 to {self.size - 1}, asked for {index}.")
        label = int(index) % len(CHARACTERS)
        # The generator depends on the picture alone, and first draws a font that has the character.
        drawing = [font for font in self.fonts if CHARACTERS[label] not in NOT_DRAWN.get(font, ())]
        generator = np.random.default_rng((self.seed, tuple(SPLITS).index(self.split), int(index)))
        return label, drawing[generator.integers(len(drawing))], generator


def render(font: str, character: str, generator: np.random.Generator) -> Image.Image:
    """Draw one character, slightly distorted, in a random grey on another, with noise.

    Args:
        font: A name in ``STYLES``.
        character: A single character of the font.
        generator: Source of rotation (up to 12 degrees), scale (0.8 to 1.15), shear (up to 0.15), shift (up to 2
            pixels), contrast (0.35 to 1 of the full range), polarity and the standard deviation of the noise (up to
            0.08 of the full range).

    Returns:
        A 32x32 picture of mode RGB with three equal channels.

    Example:
        >>> render("cmr10", "A", np.random.default_rng(0)).size
        (32, 32)
    """
    angle, scale, shear, right, down, contrast, offset, sigma = generator.random(8)
    # Warp the master drawing at twice the size, then average it down to ink in 0 .. 1.
    side = _PIXELS * _OVERSAMPLING
    matrix = _inverse_affine(
        angle=math.radians(24 * angle - 12),
        scale=0.8 + 0.35 * scale,
        shear=0.3 * shear - 0.15,
        shift=(_OVERSAMPLING * (4 * right - 2), _OVERSAMPLING * (4 * down - 2)),
        side=side,
    )
    warped = _master(font, character).transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    ink = np.asarray(warped.reduce(_OVERSAMPLING), dtype=np.float32) / 255
    # Two greys at a random distance, in random order, with noise on top.
    contrast = 0.35 + 0.65 * contrast
    lightness = (1 - contrast) * offset + contrast * (ink if generator.random() < 0.5 else 1 - ink)
    lightness += 0.08 * sigma * generator.standard_normal(ink.shape, dtype=np.float32)
    return Image.fromarray((255 * lightness.clip(0, 1) + 0.5).astype(np.uint8)).convert("RGB")


def font_path(font: str) -> Path:
    """Return the file of a TrueType font: one of matplotlib's, or of this package's.

    The package has what only newer releases of matplotlib ship, byte for byte the same.

    Example:
        >>> font_path("cmr10").name
        'cmr10.ttf'
    """
    own = FONTS / f"{font}.ttf"
    return own if own.exists() else Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")


def _inverse_affine(
    angle: float, scale: float, shear: float, shift: tuple[float, float], side: int
) -> tuple[float, float, float, float, float, float]:
    """Return PIL's six coefficients, which map a point of the result to its point of the master drawing."""
    cos, sin = math.cos(angle), math.sin(angle)
    # Rotation times shear maps the master to the picture; PIL needs the inverse around both centres.
    forward = scale * np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, shear], [0.0, 1.0]])
    inverse = np.linalg.inv(forward)
    origin = _MASTER / 2 - inverse @ (np.array(shift) + side / 2)
    return inverse[0, 0], inverse[0, 1], origin[0], inverse[1, 0], inverse[1, 1], origin[1]


@cache
def _master(font: str, character: str) -> Image.Image:
    """Draw the character upright in white on black, centred on its advance, on one baseline for all glyphs."""
    image = Image.new("L", (_MASTER, _MASTER))
    # The middle of a line is about a quarter of an em above the baseline; size and height distinguish "o" from "O".
    baseline = _MASTER / 2 + _EM / 4
    ImageDraw.Draw(image).text((_MASTER / 2, baseline), character, fill=255, font=_load(font), anchor="ms")
    return image


@cache
def _load(font: str) -> ImageFont.FreeTypeFont:
    # Every build of Pillow has the basic layout, so pictures do not depend on the build.
    return ImageFont.truetype(font_path(font), _EM, layout_engine=ImageFont.Layout.BASIC)
