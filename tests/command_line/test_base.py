"""Config files with a base: what is merged, what replaces, how callbacks change, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fpe_lightning.command_line import with_base

BASE: dict[str, Any] = {
    "model": {"class_path": "a.Model", "init_args": {"hidden": 8, "seed": "${seed_everything}"}},
    "trainer": {
        "max_epochs": 3,
        "callbacks": [
            {"class_path": "a.Split", "init_args": {"expansion": {"class_path": "a.Paper", "init_args": {"alpha": 4}}}},
            {"class_path": "a.Bar"},
        ],
    },
}


def merged(tmp_path: Path, change: dict[str, Any]) -> Any:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"base": "base.yaml", **change}))
    whole = with_base(tmp_path / "mine.yaml")
    assert whole is not None
    return yaml.safe_load(whole)


def test_a_file_without_a_base_is_left_to_the_parser(tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text("trainer: {max_epochs: 3}\n")
    (tmp_path / "broken.yaml").write_text(": : :\n")
    assert with_base(tmp_path / "plain.yaml") is None
    assert with_base(tmp_path / "broken.yaml") is None
    assert with_base(tmp_path / "none.yaml") is None


def test_mappings_are_merged_and_other_values_replace(tmp_path: Path) -> None:
    found = merged(tmp_path, {"model": {"init_args": {"hidden": [4, 4]}}, "trainer": {"precision": 16}})
    assert found["model"] == {"class_path": "a.Model", "init_args": {"hidden": [4, 4], "seed": "${seed_everything}"}}
    assert found["trainer"] == {**BASE["trainer"], "precision": 16}
    assert "base" not in found


def test_another_class_drops_the_arguments_of_the_one_in_the_base(tmp_path: Path) -> None:
    found = merged(tmp_path, {"model": {"class_path": "a.Other"}})
    assert found["model"] == {"class_path": "a.Other"}
    # The same for an expansion by names of sites, which takes the place of one expansion.
    sites = {"layers.0": {"class_path": "a.Paper"}}
    found = merged(tmp_path, {"trainer": {"callbacks": {"Split": {"expansion": sites}}}})
    assert found["trainer"]["callbacks"][0]["init_args"] == {"expansion": sites}


def test_callbacks_change_by_class_name_and_keep_their_order(tmp_path: Path) -> None:
    changes = {"Bar": None, "a.Split": {"expansion": {"init_args": {"prune": "total"}}}, "a.New": {"x": 1}}
    found = merged(tmp_path, {"trainer": {"callbacks": changes}})
    expansion = {"class_path": "a.Paper", "init_args": {"alpha": 4, "prune": "total"}}
    assert found["trainer"]["callbacks"] == [
        {"class_path": "a.Split", "init_args": {"expansion": expansion}},
        {"class_path": "a.New", "init_args": {"x": 1}},
    ]


def test_a_list_of_callbacks_replaces_that_of_the_base(tmp_path: Path) -> None:
    found = merged(tmp_path, {"trainer": {"callbacks": [{"class_path": "a.Bar"}]}})
    assert found["trainer"]["callbacks"] == [{"class_path": "a.Bar"}]


def test_a_base_may_have_a_base_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/mine.yaml").write_text("base: ../middle.yaml\ntrainer: {max_epochs: 5}\n")
    (tmp_path / "middle.yaml").write_text("base: base.yaml\nmodel: {init_args: {hidden: 2}}\n")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    found = yaml.safe_load(with_base(tmp_path / "inner/mine.yaml") or "")
    assert (found["trainer"]["max_epochs"], found["model"]["init_args"]["hidden"]) == (5, 2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("base: none.yaml", r"has the base none.yaml, but there is no file"),
        ("base: mine.yaml", r"is the base of itself: mine.yaml -> mine.yaml"),
        ("base: base.yaml\ntrainer: {callbacks: {Bra: null}}", r"There is no callback Bra to leave out"),
    ],
)
def test_mistakes_are_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        with_base(tmp_path / "mine.yaml")
