"""A checkpoint that is cut off, damaged or something else is refused in one sentence."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from fpe_lightning.checkpoints.file import check_checkpoint_file
from fpe_lightning.cli import main


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save({"state_dict": {"weight": torch.arange(1000.0)}}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_a_whole_checkpoint_passes(checkpoint: Path):
    check_checkpoint_file(checkpoint)


def test_a_half_written_checkpoint_is_refused(checkpoint: Path):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"last\.ckpt is no checkpoint, or was cut off"):
        check_checkpoint_file(checkpoint)


def test_a_damaged_checkpoint_is_refused(checkpoint: Path):
    content = bytearray(checkpoint.read_bytes())
    weights = content.find(torch.arange(1000.0).numpy().tobytes())
    assert weights > 0
    content[weights + 100] ^= 0xFF
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged: .* does not match its checksum"):
        check_checkpoint_file(checkpoint)


def test_another_archive_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "other.ckpt", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    with pytest.raises(ValueError, match="no checkpoint that torch wrote"):
        check_checkpoint_file(tmp_path / "other.ckpt")


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_the_command_line_refuses_it_before_anything_is_built(
    verb: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    assert main([verb, "--config", "configs/clip_probe.yaml", "--ckpt_path", str(checkpoint)]) == 2
    assert "is no checkpoint, or was cut off while it was written" in capsys.readouterr().err
