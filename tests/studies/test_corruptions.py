"""Corrupted pictures are the same whenever they are asked for, and as corrupt as they say."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fpe_lightning.data.glyphs import GlyphDataset
from studies.corruptions import KINDS, CorruptedImages, Corruption

GLYPHS = GlyphDataset("test", size=20)


def pixels(corruption: Corruption, number: int = 3) -> np.ndarray:
    image, _ = CorruptedImages(GLYPHS, corruption, [number])[0]
    assert (image.size, image.mode) == ((32, 32), "RGB")
    return np.asarray(image, dtype=float)


def test_pictures_keep_their_labels_and_do_not_depend_on_which_others_were_chosen() -> None:
    chosen = CorruptedImages(GLYPHS, Corruption("noise", 0.1), [7, 3, 5])
    assert len(chosen) == 3
    assert chosen.classes == GLYPHS.classes
    assert [chosen[i][1] for i in range(3)] == [GLYPHS[i][1] for i in (7, 3, 5)]
    np.testing.assert_array_equal(np.asarray(chosen[1][0]), pixels(Corruption("noise", 0.1)))


def test_noise_has_the_standard_deviation_it_says() -> None:
    grey = np.asarray(Corruption("noise", 0.1)(Image.new("RGB", (64, 64), (128,) * 3), np.random.default_rng(0)))
    assert grey.mean() == pytest.approx(128, abs=1)
    assert grey.std() == pytest.approx(25.5, rel=0.03)


def test_a_stronger_noise_is_the_same_noise_stronger() -> None:
    image = Image.new("RGB", (32, 32), (128,) * 3)
    weak, strong = (np.asarray(Corruption("noise", s)(image, np.random.default_rng(0)), float) for s in (0.05, 0.1))
    np.testing.assert_allclose(strong - 128, 2 * (weak - 128), atol=2)


def test_blur_takes_away_detail_and_keeps_the_mean() -> None:
    plain = np.asarray(GLYPHS[3][0], dtype=float)
    weak, strong = pixels(Corruption("blur", 0.5)), pixels(Corruption("blur", 2.0))
    assert plain.std() > weak.std() > strong.std()
    assert strong.mean() == pytest.approx(plain.mean(), rel=0.05)


def test_a_shift_moves_by_that_many_pixels_one_way_and_repeats_the_border() -> None:
    plain = np.asarray(GLYPHS[3][0], dtype=float)
    rolls = {(axis, step): np.roll(plain, step, axis) for axis in (0, 1) for step in (-2, 2)}
    moved = pixels(Corruption("shift", 2))
    (way,) = [key for key, rolled in rolls.items() if np.array_equal(rolled[2:-2, 2:-2], moved[2:-2, 2:-2])]
    axis, step = way
    border = moved.take([0, 1] if step > 0 else [-1, -2], axis)
    np.testing.assert_array_equal(border, np.repeat(plain.take([0 if step > 0 else -1], axis), 2, axis))
    drawn = [
        Corruption("shift", 1)(Image.fromarray(plain.astype(np.uint8)), np.random.default_rng(i)) for i in range(40)
    ]
    assert len({picture.tobytes() for picture in drawn}) == 4  # up, down, left and right


def test_a_fingerprint_tells_apart_all_that_decides_the_pictures() -> None:
    every = [
        *(CorruptedImages(GLYPHS, Corruption(kind, level), [1, 2]) for kind in KINDS for level in (1, 2)),
        CorruptedImages(GLYPHS, Corruption("blur", 1), [1, 3]),
        CorruptedImages(GLYPHS, Corruption("noise", 1), [1, 2], seed=1),
        CorruptedImages(GlyphDataset("val", size=20), Corruption("noise", 1), [1, 2]),
    ]
    assert len({each.fingerprint for each in every}) == len(every) == 9


@pytest.mark.parametrize(
    ("kind", "level", "sentence"),
    [
        ("fog", 1, "A corruption has to be 'noise', 'blur' or 'shift', found 'fog'."),
        ("noise", 0, "The level of 'noise' has to be positive, found 0."),
        ("blur", -1.0, "The level of 'blur' has to be positive, found -1.0."),
        ("shift", 1.5, "The level of 'shift' has to be a positive whole number of pixels, found 1.5."),
    ],
)
def test_a_corruption_that_cannot_be_gets_one_sentence(kind: str, level: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        Corruption(kind, level)  # type: ignore[arg-type]
