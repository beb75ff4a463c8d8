"""Expansions in YAML and on the command line: all spellings, overrides, help, and names from outside the package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.cli import CLI
from fpe_lightning.partitions import Interaction, Shared
from fpe_lightning.pruning import DiscriminantRefit, Magnitude

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


@pytest.fixture(autouse=True)
def in_an_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def with_expansion(tiny_config: Path) -> Callable[[Any], Path]:
    def write(expansion: Any, **more: Any) -> Path:
        """The tiny run with another expansion."""
        config = yaml.safe_load(tiny_config.read_text())
        config["trainer"]["callbacks"][0]["init_args"] = {"expansion": expansion, "epoch": 1, **more}
        tiny_config.write_text(yaml.safe_dump(config, sort_keys=False))
        return tiny_config

    return write


def built(config: Path, *words: str) -> Any:
    """The expansion of the only ``ExpansionCallback`` of a run that is not started."""
    cli = CLI([f"--config={config}", *words], run=False)
    (callback,) = (c for c in cli.trainer.callbacks if isinstance(c, ExpansionCallback))  # type: ignore[attr-defined]
    return callback.expansion


def spec(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


SPELLINGS: list[tuple[Any, Any]] = [
    ("Paper", fpe.Paper()),
    ("fpe_lightning.Paper", fpe.Paper()),
    (spec("Paper", alpha=4, prune="incoming"), fpe.Paper(alpha=4, prune="incoming")),
    (spec("fpe_lightning.Blocks", groups=2), fpe.Blocks(groups=2)),
    (spec("SemiStructured", prune="incoming"), fpe.SemiStructured(prune="incoming")),
    (spec("ByShape", alpha=3, layout="auto"), fpe.ByShape(alpha=3, layout="auto")),
    (spec("Expansion", partition="shared"), fpe.Expansion(partition="shared")),
    (spec("Paper", partition="Shared"), fpe.Paper(partition=Shared())),
    (spec("Paper", partition=spec("Shared", groups=4)), fpe.Paper(partition=Shared(groups=4))),
    (spec("Paper", partition=spec("fpe_lightning.partitions.Shared", groups=4)), fpe.Paper(partition=Shared(groups=4))),
    (spec("Paper", prune=spec("Magnitude", side="outgoing")), fpe.Paper(prune=Magnitude(side="outgoing"))),
    (
        spec("Paper", partition="interaction", prune=spec("fpe_lightning.pruning.DiscriminantRefit", samples=99)),
        fpe.Paper(partition="interaction", prune=DiscriminantRefit(samples=99)),
    ),
    (spec("Paper", partition="Interaction"), fpe.Paper(partition=Interaction())),
    ({"network.*": "Paper", "*": spec("Blocks", groups=2)}, {"network.*": fpe.Paper(), "*": fpe.Blocks(groups=2)}),
    (spec("Paper", seed="${seed_everything}"), fpe.Paper(seed=0)),
]


@pytest.mark.parametrize(("written", "meant"), SPELLINGS)
def test_every_spelling_builds_the_object(written: Any, meant: Any, with_expansion: Callable[[Any], Path]) -> None:
    assert built(with_expansion(written)) == meant


def test_alpha_alone_is_an_expansion(with_expansion: Callable[..., Path]) -> None:
    assert built(with_expansion(None, alpha=4, seed=1)) == fpe.ByShape(alpha=4, seed=1)


OVERRIDES: list[tuple[str, Any]] = [
    ("--trainer.callbacks.expansion.alpha 4", fpe.Paper(alpha=4, prune="incoming", seed=5)),
    ("--trainer.callbacks.expansion.alpha=4", fpe.Paper(alpha=4, prune="incoming", seed=5)),
    ("--trainer.callbacks.expansion.init_args.alpha 4", fpe.Paper(alpha=4, prune="incoming", seed=5)),
    ("--trainer.callbacks.init_args.expansion.init_args.alpha 4", fpe.Paper(alpha=4, prune="incoming", seed=5)),
    ("--trainer.callbacks.ExpansionCallback.expansion.alpha 4", fpe.Paper(alpha=4, prune="incoming", seed=5)),
    ("--trainer.callbacks.expansion.prune total", fpe.Paper(alpha=3, seed=5)),
    # Another expansion keeps alpha and seed: what prunes for one need not prune for the other.
    ("--trainer.callbacks.expansion=Blocks", fpe.Blocks(alpha=3, seed=5)),
    (
        "--trainer.callbacks.expansion=Blocks --trainer.callbacks.expansion.groups=2",
        fpe.Blocks(alpha=3, groups=2, seed=5),
    ),
    (
        "--trainer.callbacks.expansion.partition=Shared --trainer.callbacks.expansion.partition.groups=4",
        fpe.Paper(alpha=3, partition=Shared(groups=4), prune="incoming", seed=5),
    ),
]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("words", "meant"), OVERRIDES)
def test_words_change_the_expansion_wherever_its_callback_stands(
    words: str, meant: Any, place: int, with_expansion: Callable[[Any], Path]
) -> None:
    path = with_expansion(spec("Paper", alpha=3, prune="incoming", seed=5))
    config = yaml.safe_load(path.read_text())
    callbacks = config["trainer"]["callbacks"]
    callbacks.insert(place, callbacks.pop(0))
    path.write_text(yaml.safe_dump(config))
    assert built(path, *words.split()) == meant


def test_keys_go_to_the_last_callback_that_has_them_or_to_the_named_one(tiny_config: Path) -> None:
    words = (
        "--trainer.callbacks.epoch=2 --trainer.callbacks.monitor=val/loss "
        "--trainer.callbacks.ModelCheckpoint.monitor=val/loss --trainer.callbacks.ModelCheckpoint.mode=min "
        "--trainer.callbacks+=ExpansionCallback --trainer.callbacks.alpha=3 --trainer.callbacks.epoch=0"
    )
    cli = CLI([f"--config={tiny_config}", *words.split()], run=False)
    callbacks = {type(c).__name__: c for c in cli.trainer.callbacks}  # type: ignore[attr-defined]
    splits = [c for c in cli.trainer.callbacks if isinstance(c, ExpansionCallback)]  # type: ignore[attr-defined]
    assert [(c.expansion, c.schedule.moments) for c in splits] == [(fpe.Paper(), [2]), (fpe.ByShape(alpha=3), [0])]
    assert callbacks["ModelCheckpoint"].monitor == callbacks["RunSummary"].monitor == "val/loss"


REFUSED: list[tuple[Any, str]] = [
    (spec("Paper", partition="radnom"), "Unknown partition 'radnom'. Did you mean 'random'?"),
    (spec("Paper", prune="incomin"), "Unknown pruning rule 'incomin'. Did you mean 'incoming'?"),
    (spec("Paper", optimizer_state="rest"), "Unknown value `rest` for `optimizer_state`. Did you mean `reset`?"),
    (spec("Paper", alfa=3), "Unknown key `alfa` for fpe_lightning.Paper. Did you mean `alpha`?"),
    (spec("SemiStructured", alpha=3), "Unknown key `alpha` for fpe_lightning.SemiStructured."),
    (spec("Paper", partition=spec("Shred", groups=2)), "Unknown class `Shred`. Did you mean `Shared`?"),
    (spec("Paper", partition=spec("Shared", group=2)), "Unknown key `group` for fpe_lightning.partitions.Shared."),
    (spec("Paper", partition=spec("Shared", groups=0)), "`groups`, the number of groups of neurons that share a"),
    (spec("Papr"), "Unknown class `Papr`. Did you mean `Paper`?"),
    (spec("fpe_lightning.Papr"), "Unknown class `Papr` in fpe_lightning. Did you mean `Paper`?"),
    (spec("Paper", alpha=0), "`alpha` is the number of children of each neuron, an integer of at least 2; found 0"),
    (spec("Paper", alpha=4, layout="semi_structured"), 'layout="semi_structured" keeps 2 of 4 inputs'),
]


@pytest.mark.parametrize(("written", "sentence"), REFUSED)
def test_mistakes_get_one_sentence(
    written: Any, sentence: str, with_expansion: Callable[[Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        built(with_expansion(written))
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {sentence}")


def test_what_the_callback_refuses_gets_one_sentence(
    with_expansion: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        built(with_expansion("Paper", alpha=3))
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: `alpha=3` is short for an expansion, and")


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        CLI(["fit", *words])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["Expansion", "Paper", "Blocks", "SemiStructured", "ByShape"])
def test_help_says_each_choice_and_never_see(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--trainer.callbacks+=ExpansionCallback", f"--trainer.callbacks.expansion.help={name}")
    assert "See " not in text
    assert ":class:" not in text
    assert ":func:" not in text
    assert "--expansion.optimizer_state {keep,reset}" in text
    assert "Every draw depends on it" in text
    if name in ("Expansion", "Paper"):
        assert "Literal['random', 'shared', 'contiguous', 'feature', 'clause', 'interaction', 'semi_structured'" in text
        assert "Literal['total', 'incoming', 'outgoing', 'global', 'columns']" in text
        assert "--expansion.outgoing {copy,partition}" in text


def test_help_of_the_callback_names_the_expansions(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--trainer.callbacks.help=ExpansionCallback")
    assert "fpe_lightning.Expansion, fpe_lightning.Paper, fpe_lightning.Blocks, fpe_lightning.SemiStructured" in text
    assert ":class:" not in text
    assert "see " not in text


OUTSIDE = '''
import dataclasses
import sys

import torch
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.cli import CLI
from fpe_lightning.networks import MLP


def halves(weight, alive, alpha, generator):
    """Consecutive inputs go to one child."""
    return (torch.arange(alive.shape[1]) * alpha // alive.shape[1]).expand(alive.shape).clone()


@dataclasses.dataclass(frozen=True)
class FirstGo:
    """The first incoming weights go."""

    def keep(self, weights, excess):
        masks = [mask.clone() for mask in weights.incoming_masks]
        order = masks[0].flatten().nonzero().squeeze(1)[:excess]
        masks[0].view(-1)[order] = False
        return masks, list(weights.outgoing_masks)


fpe.partitions.register_partition("halves", halves)
fpe.pruning.register_pruning("first_go", FirstGo())

if __name__ == "__main__":
    model = nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3))
    before = fpe.count_nonzeros(model)
    report = fpe.expand(model, fpe.Paper(partition="halves", prune="first_go"), example_inputs=torch.zeros(1, 24))
    assert (report.sites[0].width_after, fpe.count_nonzeros(model)) == (16, before)
    CLI(["fit", *sys.argv[1:], "--trainer.callbacks.ModelCheckpoint.monitor=null"])
    (checkpoint,) = __import__("pathlib").Path(".").rglob("last.ckpt")
    narrow = MLP(24, 8, 1)
    torch.save({"state_dict": narrow.state_dict()}, "narrow.ckpt")
    expansion = fpe.Paper(partition="halves", prune="first_go")
    print(fpe.expand_checkpoint("narrow.ckpt", "wide.ckpt", narrow, expansion, example_inputs=torch.zeros(1, 24)))
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    masks = [value for name, value in state.items() if "layers.0.fpe_mask" in name]
    assert masks[0].shape == (16, 24), masks
    assert not masks[0][0::2, 12:].any(), "the first child reads the first half"
'''


def test_names_from_outside_the_package_run_from_yaml_and_in_a_checkpoint(
    with_expansion: Callable[[Any], Path], tmp_path: Path
) -> None:
    config = with_expansion(spec("Paper", partition="halves", prune="first_go"))
    (tmp_path / "train_mine.py").write_text(OUTSIDE)
    result = subprocess.run(
        [sys.executable, "train_mine.py", f"--config={config}"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("8 -> 16") >= 2


def test_a_plain_function_is_named_by_its_path(
    with_expansion: Callable[[Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_partitions.py").write_text(
        "from torch import Generator, Tensor\n"
        "def halves(weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:\n"
        "    return alive.long().cumsum(1) * alpha // (alive.shape[1] + 1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = built(with_expansion(spec("Paper", partition="my_partitions.halves")))
    assert found.partition.__name__ == "halves"
    # A resumed run finds the state of its callback by this key, in another process.
    assert " at 0x" not in ExpansionCallback(found, epoch=1).state_key
