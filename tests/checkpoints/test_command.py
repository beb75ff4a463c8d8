"""The command that widens a checkpoint file does what the function does, and answers mistakes with one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fpe_lightning as fpe
from fpe_lightning.checkpoints.__main__ import main
from fpe_lightning.networks import MLP

ARGUMENTS = {"in_features": 32, "out_features": 2, "hidden": [8]}
MODULE = ["--module", "fpe_lightning.networks.MLP", *(f"--module.{key}={value}" for key, value in ARGUMENTS.items())]


@pytest.fixture
def narrow(tmp_path: Path) -> MLP:
    network = MLP(**ARGUMENTS)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "narrow.ckpt")
    return network


def test_the_command_widens_a_file(narrow: MLP, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / "narrow.ckpt"), str(tmp_path / "wide.ckpt")]
    main(
        [
            "--path",
            files[0],
            "--target",
            files[1],
            *MODULE,
            "--alpha",
            "4",
            "--budget",
            "incoming",
            "--input_shape",
            "[1,32]",
            "--seed",
            "3",
        ]
    )
    assert "8 -> 32" in capsys.readouterr().out
    fpe.expand(narrow, fpe.Expansion(alpha=4, prune="incoming", seed=3), example_inputs=torch.zeros(1, 32))
    found = torch.load(files[1], weights_only=True)["state_dict"]
    assert found.keys() == narrow.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in narrow.state_dict().items())


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("none.ckpt", [], "error: There is no checkpoint at .*none.ckpt"),
        ("narrow.ckpt", ["--alpha", "1", "--input_shape", "[1,32]"], "error: `alpha` is the number of children"),
        ("narrow.ckpt", ["--module.hidden", "[9]", "--input_shape", "[1,32]"], "error: .*narrow.ckpt does not fit MLP"),
    ],
)
def test_mistakes_get_one_sentence(source: str, options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        main([f"--path={tmp_path / source}", f"--target={tmp_path / 'wide.ckpt'}", *MODULE, *options])
    assert not (tmp_path / "wide.ckpt").exists()
