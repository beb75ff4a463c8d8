"""Checkpoints of every format are read, and none that is cut off is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.checkpoints.file import check_checkpoint_file
from fpe_lightning.checkpoints.read import read_checkpoint
from tests.support.nets import equal, mlp

X = torch.randn(2, 64)


def expanded() -> nn.Module:
    model = mlp(64, 8, 3)
    fpe.expand(model, fpe.Paper(alpha=2), example_inputs=X)
    return model


def write(model: nn.Module, form: str, folder: Path) -> Path:
    state = dict(model.state_dict())
    if form == "safetensors":
        save_file(state, folder / "model.safetensors")
        return folder / "model.safetensors"
    if form == "shards":
        names = sorted(state)
        shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, held in shards.items():
            save_file({name: state[name] for name in held}, folder / file)
        index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
        (folder / "model.safetensors.index.json").write_text(str(index).replace("'", '"'))
        return folder
    value: Any = {"state_dict": state, "epoch": 3} if "lightning" in form else state
    torch.save(value, folder / "x.pt", _use_new_zipfile_serialization="legacy" not in form)
    return folder / "x.pt"


FORMS = ["zip", "lightning", "legacy", "legacy lightning", "safetensors", "shards"]


@pytest.mark.parametrize("form", FORMS)
def test_structure_comes_from_files_of_every_format(form: str, tmp_path: Path) -> None:
    wide, model = expanded(), mlp(64, 8, 3)
    assert fpe.restore_structure_from_file(model, write(wide, form, tmp_path))
    model.load_state_dict(wide.state_dict())
    assert equal(dict(model.state_dict()), dict(wide.state_dict()))


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_that_is_cut_off_is_refused_wherever_that_is(form: str, tmp_path: Path) -> None:
    path, model = write(expanded(), form, tmp_path), mlp(64, 8, 3)
    content = path.read_bytes()
    for length in (0, 5, 30, 200, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut off while it was written"):
            fpe.restore_structure_from_file(model, path)
    assert model[0].out_features == 8


def test_safetensors_with_more_or_other_bytes_are_refused(tmp_path: Path) -> None:
    path = write(expanded(), "safetensors", tmp_path)
    content = path.read_bytes()
    for changed in (content + b"0", content[:8] + b"[" + content[9:], (2**40).to_bytes(8, "little") + content[8:]):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"no file of safetensors, or was cut off"):
            read_checkpoint(path)


def test_a_trainer_is_told_that_it_does_not_read_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds weights alone; resume from a checkpoint that a Trainer wrote"):
        check_checkpoint_file(write(expanded(), "safetensors", tmp_path))
    assert check_checkpoint_file(write(expanded(), "legacy", tmp_path)) == "legacy"


class Other:
    """Not a plain type."""


@pytest.mark.parametrize("new", [True, False])
def test_what_is_no_plain_type_is_named(new: bool, tmp_path: Path) -> None:
    torch.save({**expanded().state_dict(), "more": Other()}, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match="more than plain types and tensors; if you trust it"):
        read_checkpoint(tmp_path / "x.pt")
    assert isinstance(read_checkpoint(tmp_path / "x.pt", weights_only=False)["more"], Other)


def test_another_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="directory of a sharded checkpoint; save a full one"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("form", ["legacy", "safetensors"])
@pytest.mark.parametrize("name", ["wide.pt", "wide.safetensors"])
def test_such_files_are_expanded_too(form: str, name: str, tmp_path: Path) -> None:
    path, target = write(mlp(64, 8, 3), form, tmp_path), tmp_path / name
    fpe.expand_checkpoint(path, target, mlp(64, 8, 3), fpe.Paper(alpha=2), example_inputs=X)
    assert check_checkpoint_file(target, safetensors=True) == ("zip" if name == "wide.pt" else "safetensors")
    model = mlp(64, 8, 3)
    fpe.load_expanded_state_dict(model, read_checkpoint(target))
    assert model[0].out_features == 16


def test_safetensors_hold_no_checkpoint_of_lightning(tmp_path: Path) -> None:
    path = write(mlp(64, 8, 3), "lightning", tmp_path)
    with pytest.raises(ValueError, match=r"holds more than weights, which wide.safetensors cannot"):
        fpe.expand_checkpoint(path, tmp_path / "wide.safetensors", mlp(64, 8, 3), example_inputs=X)
