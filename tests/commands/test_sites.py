"""``fpe sites`` prints the widths that can expand, and reasons against the others."""

from __future__ import annotations

import pytest

from fpe_lightning.commands.main import main
from fpe_lightning.commands.sites import example


def test_the_table_of_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    kwargs = '{"in_features": 8, "hidden": 6, "out_features": 3}'
    assert main(["sites", "fpe_lightning.networks.MLP", "--input", "1,8", "--kwargs", kwargs, "--alpha", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["site", "width", "with", "alpha=4", "fan-in", "kind"]
    assert lines[1].split() == ["layers.0", "6", "24", "8", "hidden"]
    assert any(line.startswith("Left out (1):") for line in lines)
    assert lines[-1].strip() == "it reaches an output of the model: layers.2"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["torch.nn.Liner", "--input", "1,8"], "There is no `torch.nn.Liner`"),
        (["torch.nn.Linear", "--input", "1,8"], "cannot be called with --kwargs '{}'"),
        (["builtins.dict", "--input", "1,8"], "makes a dict"),
        (["torch.nn.ReLU", "--input", "8x8"], "--input takes a shape"),
        (["torch.nn.ReLU", "--input", "1,8:flaot32"], "--input takes a shape"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], sentence: str) -> None:
    answer = main(["sites", *words])
    assert isinstance(answer, str)
    assert answer.startswith("error: ")
    assert sentence in answer


def test_inputs_may_be_token_numbers() -> None:
    assert example("2,3:int64").tolist() == [[0, 0, 0], [0, 0, 0]]
