"""Promises of the training script: deterministic, sees the training fonts alone, writes what open_clip loads."""

from __future__ import annotations

import hashlib
import inspect
import math
import runpy
import sys

import pytest
import torch
from torch.nn import functional as F

from fpe_lightning.data import glyphs
from fpe_lightning.data.encoder import load_encoder
from studies.train_glyph_clip import contrastive_loss, train


def short(output, **options):
    train(output, **{"steps": 2, "batch_size": 32, "evaluation_size": 94, **options})
    return hashlib.sha256((output / "open_clip_model.safetensors").read_bytes()).hexdigest()


def test_the_run_is_deterministic_in_its_seed_and_leaves_the_global_state_alone(tmp_path):
    state = torch.get_rng_state()
    first = short(tmp_path / "first")
    assert torch.equal(torch.get_rng_state(), state)
    assert short(tmp_path / "again") == first
    assert short(tmp_path / "other", seed=2) != first


def test_the_result_loads_and_is_described(tmp_path):
    short(tmp_path)
    assert load_encoder(f"local-dir:{tmp_path}").dim == 512
    card = (tmp_path / "README.md").read_text()
    assert "2 steps of 32 pictures" in card
    assert "## Licence" in card
    assert all(font in card for font in glyphs.STYLES)


def test_held_out_fonts_are_never_drawn_in_training(tmp_path, monkeypatch):
    drawn = []
    render = glyphs.render
    monkeypatch.setattr(glyphs, "render", lambda font, *rest: (drawn.append(font), render(font, *rest))[1])
    short(tmp_path, steps=8)
    training, evaluation = drawn[: 8 * 32], drawn[8 * 32 :]
    assert set(training) == set(glyphs.SPLITS["train"])
    assert set(evaluation) == set(glyphs.SPLITS["val"] + glyphs.SPLITS["test"])


def test_the_command_line_runs(tmp_path, monkeypatch, capsys):
    options = ["--output", str(tmp_path), "--steps", "1", "--batch_size", "64", "--evaluation_size", "94"]
    monkeypatch.setattr(sys, "argv", ["train_glyph_clip", *options])
    runpy.run_path(inspect.getfile(train), run_name="__main__")
    assert "zero-shot accuracy on val: " in capsys.readouterr().out
    assert (tmp_path / "open_clip_model.safetensors").stat().st_size < 8e6


@pytest.mark.parametrize("options", [{"steps": 0}, {"batch_size": 1}])
def test_nothing_to_train_is_refused_before_anything_is_written(tmp_path, options):
    with pytest.raises(ValueError, match="needs steps >= 1 and batch_size >= 2, got "):
        short(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_loss_is_clips_own_when_all_captions_differ():
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(5, 8, generator=generator)) for _ in range(2))
    logits = 7 * images @ texts.T
    expected = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, torch.arange(5), torch.tensor(7.0)), expected)


def test_pictures_with_the_same_caption_are_all_positives():
    images = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    loss = contrastive_loss(images, torch.eye(2), torch.tensor([0, 0, 1]), torch.tensor(50.0))
    # only the text that has two pictures is uncertain: which of the two
    assert float(loss) == pytest.approx(math.log(2) / 2 / 2, abs=1e-6)
