"""Remember which layout was fastest, in a small file that only the machine and the versions that wrote it read."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from fpe_lightning.paths import default_cache_dir

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """The outcome of one comparison.

    Attributes:
        layout: The layout that was chosen.
        times: Median seconds of each layout, by name.
    """

    layout: str
    times: dict[str, float]

    def __str__(self) -> str:
        """The layouts with their times, fastest first."""
        times = sorted(self.times.items(), key=lambda pair: pair[1])
        return f"{self.layout} ({', '.join(f'{name} {1e3 * seconds:.3f} ms' for name, seconds in times)})"


def this_machine() -> dict[str, str]:
    """Hardware and versions, on which times depend and which a comparison does not name.

    Example:
        >>> this_machine()["torch"] == torch.__version__
        True
    """
    from fpe_lightning import __version__  # the package imports this module

    gpu = "none"
    if torch.cuda.is_available():
        gpu = f"{torch.cuda.get_device_name()} {torch.cuda.get_device_capability()}"
    cpu = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {"cpu": cpu or platform.machine(), "gpu": gpu, "torch": torch.__version__, "fpe_lightning": __version__}


class ChoiceFile:
    """Comparisons that were made before, in ``layouts.json`` in the cache directory.

    A file from another machine or version, or one that is damaged, is ignored with a line in the log, and replaced
    when something is remembered. It is written under another name and then moved, so that readers never see half of
    it.

    Args:
        path: The file; None takes the cache directory's.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = default_cache_dir() / "layouts.json" if path is None else path

    def load(self) -> dict[str, Choice]:
        """Every comparison that holds on this machine, by its key."""
        try:
            found: Any = json.loads(self.path.read_text())
            machine, choices = found["machine"], {key: Choice(**value) for key, value in found["choices"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is ignored: it cannot be read as choices of layouts (%s).", self.path, error)
            return {}
        here = this_machine()
        differ = [f"{key} {machine.get(key)}, here {value}" for key, value in here.items() if machine.get(key) != value]
        if differ:
            log.info("%s is ignored: it was measured elsewhere (%s).", self.path, "; ".join(differ))
            return {}
        return choices

    def remember(self, key: str, choice: Choice) -> None:
        """Add one comparison; a cache directory that cannot be written to costs a line in the log and no more."""
        choices = {**self.load(), key: choice}
        content = {"machine": this_machine(), "choices": {key: asdict(value) for key, value in choices.items()}}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, prefix=self.path.name, delete=False) as file:
                file.write(json.dumps(content, indent=1))
            os.replace(file.name, self.path)
        except OSError as error:
            log.warning("The layouts that were timed cannot be remembered in %s: %s.", self.path, error)


def decided_by_rank_0(decide: Callable[[], T]) -> T:
    """The result of a function on the first of several processes, on all of them; its error is raised on all of them.

    Example:
        >>> decided_by_rank_0(lambda: 3)
        3
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return decide()
    box: list[T | Exception | None] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            box = [decide()]
        except Exception as error:  # the others wait for an answer, whatever it is
            box = [error]
    torch.distributed.broadcast_object_list(box, src=0)
    if isinstance(box[0], Exception):
        raise box[0]
    return box[0]  # type: ignore[return-value]
