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


@pytest.mark.parametrize(
    ("words", "expansion"),
    [
        ("--alpha 4 --seed 3", fpe.ByShape(alpha=4, seed=3)),
        (
            "--expansion Paper --expansion.alpha 4 --expansion.prune incoming --expansion.seed 3",
            fpe.Paper(alpha=4, prune="incoming", seed=3),
        ),
        (
            "--expansion Paper --expansion.alpha 4 --expansion.partition Shared --expansion.partition.groups 2",
            fpe.Paper(alpha=4, partition=fpe.partitions.Shared(groups=2)),
        ),
        ('--expansion {"layers.*":{"class_path":"Paper","init_args":{"alpha":4}}}', fpe.Paper(alpha=4)),
    ],
)
def test_the_command_widens_a_file(
    words: str, expansion: fpe.Expansion, narrow: MLP, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = tmp_path / "wide.ckpt"
    main([f"--path={tmp_path / 'narrow.ckpt'}", f"--target={wide}", *MODULE, *words.split(), "--input_shape=[1,32]"])
    assert "8 -> 32" in capsys.readouterr().out
    fpe.expand(narrow, expansion, example_inputs=torch.zeros(1, 32))
    found = torch.load(wide, weights_only=True)["state_dict"]
    assert found.keys() == narrow.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in narrow.state_dict().items())


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("none.ckpt", [], "error: There is no checkpoint at .*none.ckpt"),
        ("narrow.ckpt", ["--alpha", "0", "--input_shape", "[1,32]"], "error: `alpha` is the number of children"),
        ("narrow.ckpt", ["--alpha", "4", "--expansion", "Paper"], "error: `alpha=4` is short for an expansion"),
        ("narrow.ckpt", ["--module.hidden", "[9]", "--input_shape", "[1,32]"], "error: .*narrow.ckpt does not fit MLP"),
    ],
)
def test_mistakes_get_one_sentence(source: str, options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        main([f"--path={tmp_path / source}", f"--target={tmp_path / 'wide.ckpt'}", *MODULE, *options])
    assert not (tmp_path / "wide.ckpt").exists()


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--expansion", "Papr"], "Unknown class `Papr`. Did you mean `Paper`?"),
        (["--expansion", "Paper", "--expansion.alpa", "4"], "Unknown key `alpa` for fpe_lightning.Paper."),
        (["--expansion", "Paper", "--expansion.prune", "incomin"], "Unknown pruning rule 'incomin'. Did you mean"),
        (["--expansion", "Paper", "--expansion.alpha", "0"], "`alpha` is the number of children"),
        (["--module.hiden", "[8]"], "Unknown key `hiden` for fpe_lightning.networks.MLP. Did you mean `hidden`?"),
        (["--sights", "x"], "Unknown key `sights`. Did you mean `sites`?"),
    ],
)
def test_mistyped_words_get_one_sentence(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"--path={tmp_path / 'narrow.ckpt'}", f"--target={tmp_path / 'wide.ckpt'}"]
    with pytest.raises(SystemExit) as stop:
        main([*files, *MODULE, *options, "--input_shape=[1,32]"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert not (tmp_path / "wide.ckpt").exists()
