"""README and docs say what is true: files, links and modules exist, commands parse, Python blocks run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException

import fpe_lightning as fpe
from fpe_lightning.callbacks.fsdp2.checks import TESTED
from fpe_lightning.cli import CLI
from fpe_lightning.commands.main import COMMANDS
from fpe_lightning.commands.main import main as command_line
from fpe_lightning.data import sources
from fpe_lightning.partitions import partition
from fpe_lightning.pruning import pruning
from fpe_lightning.sites.tracing import operators
from fpe_lightning.sparse import LAYOUTS
from tests.support.shipped import EXPERIMENTS

ROOT = Path(__file__).parent.parent
PAGES = {page.name: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
ALL = "\n".join(PAGES.values())
REGISTRIES = (partition._PARTITIONS, pruning._RULES, operators.RULES, LAYOUTS, sources._DATASETS)


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Words of every command in a bash block; a line that ends in a backslash continues on the next."""
    lines = "".join(blocks("bash", ALL)).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in [*shlex.split(line, comments=True), ";"]]
    found: list[list[str]] = [[]]
    for part in parts:
        if part in (";", "&&"):
            found.append([])
        else:
            found[-1].append(part)
    return [words for words in found if words]


TRAINING = sorted({tuple(words[words.index("train.py") + 1 :]) for words in commands() if "train.py" in words})
PYTHON = [(name, number, block) for name, text in PAGES.items() for number, block in enumerate(blocks("python", text))]
LINKS = [
    (name, link) for name, text in PAGES.items() for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link
]


@pytest.fixture
def _own_registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Names that a block registers are gone after it."""
    with monkeypatch.context() as patch:
        for registry in REGISTRIES:
            patch.setattr(registry, "_found", dict(registry._found))
        yield


def test_there_is_something_to_check() -> None:
    assert TRAINING
    assert {name for name, _, _ in PYTHON} >= {"README.md", "quickstart.md", "extending.md", "devices.md", "presets.md"}


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 130


@pytest.mark.parametrize("path", sorted(set(re.findall(r"configs/[\w/]+\.yaml", ALL))))
def test_every_config_that_is_named_exists(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_config_of_an_experiment_is_named(name: str) -> None:
    assert f"configs/{name}.yaml" in ALL


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_every_link_leads_to_a_file(page: str, link: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    assert (folder / link).exists()


def pages_of(entries: Any) -> list[str]:
    """Files in the navigation of the site, of any depth."""
    if isinstance(entries, str):
        return [entries]
    parts = entries.values() if isinstance(entries, dict) else entries
    return [page for part in parts for page in pages_of(part)]


def test_the_navigation_has_every_page_once() -> None:
    listed = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(
        page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")
    )


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"README.md", "api.md", "contributing.md"}))
def test_the_readme_links_every_page_of_text(page: str) -> None:
    assert f"(docs/{page})" in PAGES["README.md"]


def test_the_page_of_troubles_holds_the_sentences_of_the_package() -> None:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.on_page_markdown(PAGES["troubleshooting.md"])
    for words in ("is registered already; choose another name.", "No site is left to split", "which is not installed"):
        assert words in page
    assert page.count("\n- ") > 200


FPE = sorted({tuple(words[1:]) for words in commands() if words[0] == "fpe"})


@pytest.mark.parametrize("words", FPE, ids=" ".join)
def test_every_fpe_command_parses(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path if words[0] == "new" else ROOT)
    assert words[0] in COMMANDS
    if words[0] in ("new", "sites"):
        assert command_line([*words]) == 0, capsys.readouterr().err


@pytest.mark.usefixtures("_own_registries")
def test_classes_of_the_page_on_extending_go_into_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    project = ModuleType("my_project")
    monkeypatch.setitem(sys.modules, "my_project", project)
    for block in blocks("python", PAGES["extending.md"])[:2]:
        exec(block, vars(project))
    config = {"partition": "my_project.Strided", "prune": "my_project.LastColumns"}
    given = {name: {"class_path": path} for name, path in config.items()}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(fpe.Expansion, "expansion")
    made = parser.instantiate(parser.parse_object({"expansion": given})).expansion
    assert (type(made.partition), type(made.prune)) == (vars(project)["Strided"], vars(project)["LastColumns"])


@pytest.mark.parametrize("module", sorted(set(re.findall(r"^python -m ([\w.]+)", ALL, re.MULTILINE))))
def test_every_module_that_is_run_exists(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("block", blocks("yaml", ALL))
def test_every_yaml_block_parses(block: str) -> None:
    assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
@pytest.mark.parametrize("args", TRAINING, ids=" ".join)
def test_every_training_command_parses(
    args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        CLI([*args, "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err


@pytest.mark.usefixtures("_own_registries")
@pytest.mark.parametrize(("page", "number", "block"), PYTHON, ids=[f"{name}-{number}" for name, number, _ in PYTHON])
def test_every_python_block_runs(
    page: str, number: int, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gated = "ExpandableModelParallelStrategy(" in block and not torch.__version__.startswith(TESTED)
    with pytest.raises(MisconfigurationException, match="was tested with torch") if gated else nullcontext():
        exec(compile(block, f"{page}, Python block {number}", "exec"), {"__name__": "__main__"})
