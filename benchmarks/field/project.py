"""What a project has to offer, and the examination that is the same for all of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from benchmarks.field.row import Row
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.callbacks.lightnings import MisconfigurationException
from fpe_lightning.expansion import ExpansionReport
from fpe_lightning.sites.found import summary_of

EPOCHS, SPLIT = 3, 1
"""Epochs of a run, and the epoch before which it splits. Runs that resume stop after the second epoch."""


def true_nonzeros(model: nn.Module) -> int:
    """Entries of parameters that are not zero, each parameter once, whatever masks say.

    Example:
        >>> true_nonzeros(nn.Linear(4, 2))
        10
    """
    return sum(int(torch.count_nonzero(parameter.detach())) for parameter in model.parameters())


class Split(ExpansionCallback):
    """The callback as users add it, which also counts non-zeros right after the split."""

    after: int | None = None

    def on_after_expansion(self, trainer: Any, pl_module: Any, report: ExpansionReport) -> None:
        """Count the entries that are not zero."""
        super().on_after_expansion(trainer, pl_module, report)
        self.after = true_nonzeros(pl_module)


class Project:
    """A project as its users run it. Subclasses train, save and load by the project's own code.

    Attributes:
        name: Unique, for ``--projects``.
        packages: Distributions that it needs, the first one names its version.
        exact: Whether a resumed run goes on from the saved optimizer; some projects begin with a new one.
        moment: When the callback splits.
        plain: Whether it has a plain file.
    """

    name = ""
    packages: tuple[str, ...] = ()
    exact = True
    plain = True
    moment: dict[str, Any] = {"epoch": SPLIT}  # noqa: RUF012

    def train(self, folder: Path, epochs: int, callbacks: Sequence[Any], resume: Path | None = None) -> nn.Module:
        """Train a new model, or one that another folder holds, and save it into a folder.

        Args:
            folder: Where to save.
            epochs: Epochs in all, those before ``resume`` included.
            callbacks: For the Trainer of the project.
            resume: The folder of a shorter run.

        Returns:
            The module that was trained, with all its parameters.
        """
        raise NotImplementedError

    def load(self, folder: Path) -> nn.Module:
        """What the project's own loader makes of a folder."""
        raise NotImplementedError

    def outputs(self, model: nn.Module) -> Tensor:
        """The outputs of a trained or loaded module for fixed inputs, in evaluation mode."""
        raise NotImplementedError

    def build(self) -> nn.Module:
        """A narrow module as the project builds it, for the plain file."""
        raise NotImplementedError

    def nonzeros(self, model: nn.Module) -> int:
        """Entries of the model that are not zero."""
        return true_nonzeros(model)

    def callback(self, folder: Path) -> Split:
        """The callback of the run."""
        return Split(alpha=2, plain_file=folder / "plain.pt", **self.moment)

    def versions(self) -> str:
        """Versions of its packages; empty if one is missing."""
        try:
            return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in self.packages)
        except importlib.metadata.PackageNotFoundError:
            return ""


def examine(project: Project) -> Row:
    """Train a project without and with the callback, load what it saved in every way, and resume it.

    Args:
        project: The project.

    Returns:
        Its row; errors become a part of it.
    """
    row, begin = Row(project.name, project.versions()), time.perf_counter()
    if project.packages and not row.version:
        row.ran = "not installed"
        return row
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            for part in ("dense", "split", "part", "resumed"):
                (folder / part).mkdir()
            project.train(folder / "dense", EPOCHS, [])
            row.ran = "yes"
        except Exception as error:  # whatever a project raises is its row
            row.ran = f"no: {first_line(error)}"
        else:
            _with_split(project, folder, row)
    row.seconds = time.perf_counter() - begin
    return row


def _with_split(project: Project, folder: Path, row: Row) -> None:
    callback = project.callback(folder / "split")
    try:
        model = project.train(folder / "split", EPOCHS, [callback])
    except Exception as error:
        row.split, row.note = "refused" if isinstance(error, MisconfigurationException) else "error", first_line(error)
        return
    fill(row, project, callback, model)
    if not callback.reports:
        return
    outputs = project.outputs(model)
    file = folder / "split/plain.pt"
    if project.plain:
        row.plain = _attempt(lambda: same(project.outputs(load_plain(project.build(), file)), outputs))
    row.loader = _attempt(lambda: _inside(project, folder / "split", outputs))
    row.resumes = _attempt(lambda: _resumed(project, folder, model))


def fill(row: Row, project: Project, callback: Split, model: nn.Module) -> None:
    """Write what was split, and the counts of non-zeros, into a row."""
    sites = sum(len(report.sites) for report in callback.reports)
    row.split = f"{sites} of {sites + len(callback.left_out)}"
    if callback.left_out:
        row.note = f"left out: {summary_of(callback.left_out)}"
    if callback.reports:
        row.before = callback.reports[0].nonzeros_before
        row.after, row.end = callback.after, project.nonzeros(model)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            row.counted = fpe.count_nonzeros(model)
        row.note = " ".join([*(str(each.message) for each in said), row.note])[:500].strip()


def load_plain(model: nn.Module, path: Path) -> nn.Module:
    """Give a narrow module the weights of a plain file, as the file says, by torch alone."""
    saved = torch.load(path, weights_only=True)
    code = saved["how_to_build"].partition("\n\n")[2].replace("FILE", repr(str(path)))
    exec(code, {"torch": torch, "model": model})  # the lines that a stranger would copy
    return model


def _inside(project: Project, folder: Path, outputs: Tensor) -> str:
    with fpe.expanded_checkpoints():
        return same(project.outputs(project.load(folder)), outputs)


def _resumed(project: Project, folder: Path, model: nn.Module) -> str:
    project.train(folder / "part", EPOCHS - 1, [project.callback(folder / "part")])
    again = project.train(folder / "resumed", EPOCHS, [project.callback(folder / "resumed")], folder / "part")
    pairs = list(zip(model.parameters(), again.parameters(), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return "differs in shapes"
    if all(torch.equal(a, b) for a, b in pairs):
        return "bit-identical"
    if true_nonzeros(again) > fpe.count_nonzeros(model):
        return "no: non-zeros grow"
    return "differs" if project.exact and _resumes_dense(project, folder) else "goes on"


def _resumes_dense(project: Project, folder: Path) -> bool:
    """Whether the project resumes to the bit without a split; some begin with other random numbers or rates."""
    for part in ("dense_part", "dense_resumed"):
        (folder / part).mkdir()
    whole = project.train(folder / "dense", EPOCHS, [])
    project.train(folder / "dense_part", EPOCHS - 1, [])
    again = project.train(folder / "dense_resumed", EPOCHS, [], folder / "dense_part")
    return all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def same(found: Tensor, expected: Tensor) -> str:
    """Whether outputs are equal to rounding.

    Example:
        >>> same(torch.zeros(2), torch.zeros(3))
        'no: outputs of shape (2,) instead of (3,)'
    """
    if found.shape != expected.shape:
        return f"no: outputs of shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    if torch.allclose(found, expected, atol=1e-4, rtol=1e-4):
        return "yes"
    return f"no: outputs differ by {float((found - expected).abs().max()):.1e}"


def _attempt(act: Any) -> str:
    try:
        return act()
    except NotImplementedError:
        return ""
    except Exception as error:
        return f"no: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message, for a cell of a table."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else ''}"
