"""Promises of the glyph data set: what is drawn, from which fonts, and the same picture everywhere."""

from __future__ import annotations

import hashlib
import pickle
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.ft2font import FT2Font
from torch.utils.data import DataLoader

from fpe_lightning.data.glyphs import (
    CHARACTERS,
    FONTS,
    NOT_DRAWN,
    SIZES,
    SPLITS,
    STYLES,
    GlyphDataset,
    font_path,
    render,
)


def pixels(dataset: GlyphDataset, index: int) -> np.ndarray:
    return np.asarray(dataset[index][0])


def test_pictures_are_small_grey_rgb_images():
    image, label = GlyphDataset("train")[5]
    assert (image.size, image.mode, type(label), label) == ((32, 32), "RGB", int, 5)
    red, green, blue = image.split()
    assert red.tobytes() == green.tobytes() == blue.tobytes()


def test_classes_are_the_names_of_94_characters():
    assert len(CHARACTERS) == len(set(GlyphDataset.classes)) == 94
    assert GlyphDataset.classes[CHARACTERS.index("a")] == "latin small letter a"
    assert GlyphDataset.classes[CHARACTERS.index("7")] == "digit seven"


@pytest.mark.parametrize("split", SPLITS)
def test_default_sizes_hold_every_class_equally_often(split):
    dataset = GlyphDataset(split)
    counts = np.bincount([dataset._draw(index)[0] for index in range(len(dataset))])
    assert len(dataset) == SIZES[split]
    assert set(counts) == {SIZES[split] // 94}


def test_fonts_of_the_splits_are_disjoint_and_use_every_face():
    fonts = [font for split in SPLITS.values() for font in split]
    assert sorted(fonts) == sorted(STYLES)
    for split in SPLITS:
        dataset = GlyphDataset(split)
        assert dataset.fonts == SPLITS[split]
        assert {dataset._draw(index)[1] for index in range(len(dataset))} == set(SPLITS[split])


def test_files_of_different_faces_differ():
    assert len({font_path(font).read_bytes() for font in STYLES}) == len(STYLES)


def test_every_release_of_matplotlib_gives_the_same_files():
    files = b"".join(font_path(font).read_bytes() for font in sorted(STYLES))
    assert hashlib.sha256(files).hexdigest() == "bdfceab4aed5da5f1ddb8aab21b3753f3dee332976f7d8d63bdbbae77b6e6898"
    assert font_path("cmti10").parent == FONTS  # of which releases before 3.11 have none


def glyph_names(font: str) -> list[str]:
    face = FT2Font(str(font_path(font)))
    charmap = face.get_charmap()
    return [face.get_glyph_name(charmap[ord(character)]) for character in CHARACTERS]


@pytest.mark.parametrize("font", STYLES)
def test_left_out_characters_are_those_that_the_font_itself_gives_another_name(font):
    named = zip(CHARACTERS, glyph_names("DejaVuSans"), glyph_names(font), strict=True)
    other = {character for character, standard, name in named if name != standard}
    # cmti10 calls its pound sign "dollar"
    assert other | ({"$"} if font == "cmti10" else set()) == NOT_DRAWN.get(font, set())


@pytest.mark.parametrize("split", SPLITS)
def test_left_out_characters_never_appear(split):
    dataset = GlyphDataset(split, size=94 * 60)
    for index in range(len(dataset)):
        label, font, _ = dataset._draw(index)
        assert CHARACTERS[label] not in NOT_DRAWN.get(font, ())


@pytest.mark.parametrize("font", STYLES)
def test_every_glyph_shows_and_no_two_of_a_font_look_the_same(font):
    drawn = [character for character in CHARACTERS if character not in NOT_DRAWN.get(font, ())]
    pictures = [np.asarray(render(font, character, np.random.default_rng(0)), dtype=float) for character in drawn]
    background = np.median(pictures[drawn.index(".")])
    assert all((np.abs(picture - background) > 30).sum() > 6 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == len(drawn)


@settings(max_examples=30, deadline=None)
@given(index=st.integers(0, 499), seed=st.integers(0, 2**40), split=st.sampled_from(sorted(SPLITS)))
def test_a_picture_depends_on_split_seed_and_index_alone(index, seed, split):
    small, large = GlyphDataset(split, size=500, seed=seed), GlyphDataset(split, size=10**9, seed=seed)
    np.random.default_rng(0).random()
    torch.rand(3)
    assert np.array_equal(pixels(small, index), pixels(large, index))
    assert small.caption(index) == large.caption(index)


def test_other_seeds_splits_and_indices_give_other_pictures():
    picture = pixels(GlyphDataset("train"), 3)
    assert not np.array_equal(picture, pixels(GlyphDataset("train", seed=1), 3))
    assert not np.array_equal(picture, pixels(GlyphDataset("val"), 3))
    assert not np.array_equal(picture, pixels(GlyphDataset("train"), 3 + 94))


def test_global_random_states_are_left_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    GlyphDataset("train")[0]
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def _picture_bytes(index: int) -> bytes:
    return GlyphDataset("test", seed=7)[index][0].tobytes()


@pytest.mark.slow
def test_a_fresh_process_draws_the_same_pictures():
    with get_context("spawn").Pool(1) as pool:
        assert pool.map(_picture_bytes, [0, 93, 2000]) == [_picture_bytes(index) for index in (0, 93, 2000)]


def test_workers_of_a_loader_draw_the_same_pictures():
    dataset = GlyphDataset("test", size=6, seed=7, transform=lambda image: torch.from_numpy(np.array(image)))
    loaded = torch.cat([images for images, _ in DataLoader(dataset, batch_size=2, num_workers=2)])
    assert torch.equal(loaded, torch.stack([image for image, _ in dataset]))


def test_survives_pickling():
    dataset = pickle.loads(pickle.dumps(GlyphDataset("val", size=10, seed=4)))
    assert dataset.fingerprint == GlyphDataset("val", size=10, seed=4).fingerprint
    assert np.array_equal(pixels(dataset, 9), pixels(GlyphDataset("val", size=10, seed=4), 9))


def test_transform_is_applied_to_the_picture_alone():
    dataset = GlyphDataset("val", size=8, transform=lambda image: torch.from_numpy(np.array(image)))
    images, labels = next(iter(DataLoader(dataset, batch_size=8)))
    assert images.shape == (8, 32, 32, 3)
    assert labels.tolist() == list(range(8))


def test_caption_names_the_style_of_the_font_and_the_character():
    dataset = GlyphDataset("train")
    for index in range(300):
        label, font, _ = dataset._draw(index)
        assert dataset.caption(index) == f"{STYLES[font]} {dataset.classes[label]}"
        assert any(dataset.caption(index) == prompt.format(dataset.classes[label]) for prompt in dataset.prompts)


def test_fingerprint_is_stable_and_tells_every_recipe_apart(monkeypatch):
    recipes = [("train", 94, 0), ("train", 94, 1), ("train", 95, 0), ("val", 94, 0), ("test", 94, 0)]
    prints = [GlyphDataset(*recipe).fingerprint for recipe in recipes]
    assert len(set(prints)) == len(recipes)
    assert prints[0] == GlyphDataset("train", 94, 0, transform=str).fingerprint
    monkeypatch.setattr("fpe_lightning.data.glyphs._RULE", 2)
    assert GlyphDataset("train", 94, 0).fingerprint != prints[0]


def test_fingerprint_sees_a_changed_font_file(monkeypatch, tmp_path):
    before = GlyphDataset("val").fingerprint
    changed = tmp_path / "font.ttf"
    changed.write_bytes(b"another design")
    monkeypatch.setattr("fpe_lightning.data.glyphs.font_path", lambda font: changed)
    assert GlyphDataset("val").fingerprint != before


def test_iteration_ends_at_the_size():
    assert [label for _, label in GlyphDataset("test", size=3)] == [0, 1, 2]


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_out_of_range_is_refused(index):
    with pytest.raises(IndexError, match=f"has pictures 0 to 2, asked for {index}"):
        GlyphDataset("test", size=3)[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "has no split 'dev'; choose one of 'train', 'val', 'test'"),
        ({"size": 0}, "size of at least 1 picture, got 0"),
        ({"seed": -1}, "seed of 0 or more, got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GlyphDataset(**arguments)
