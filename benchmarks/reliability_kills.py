"""Jobs that are killed at a random moment and started again, and whether they end as if nothing had happened."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.checkpoints.file import check_checkpoint_file
from fpe_lightning.data import BatchLoader
from fpe_lightning.data.cache import CacheKey, ensure_cache, open_cache
from studies.__main__ import main as study

Job = Callable[[Path], str]


class _Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(48, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def fit(folder: Path) -> str:
    """A fit with two splits and validation that writes a checkpoint after every step; the newest is resumed from."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(48, 48, generator=generator), torch.randint(0, 3, (48,), generator=generator)
    module = _Module()
    trainer = pl.Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[
            ExpansionCallback(alpha=2, epoch=[1, 3]),
            ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1),
        ],
    )
    written = sorted(folder.glob("step=*.ckpt"), key=lambda path: int(path.stem.removeprefix("step=").split("-")[0]))
    for path in written:
        check_checkpoint_file(path)  # each that has its name is whole
    newest: Any = written[-1] if written else None
    loaders = (BatchLoader(x, y, 8, shuffle=True), BatchLoader(x, y, 16))
    trainer.fit(module, *loaders, ckpt_path=newest)
    return _digest(module.state_dict())


def encode(folder: Path) -> str:
    """An embedding cache, written in many batches."""
    key = CacheKey("e", "w", "p", "d", "f", "train", 4000, 64, "float32", ("a",))

    def batches() -> Any:
        draw = np.random.default_rng(0)
        for _ in range(40):
            yield draw.standard_normal((100, 64)), np.zeros(100, np.int64)

    features, _ = open_cache(ensure_cache(key, folder, batches), key, verify=True)
    return hashlib.sha256(np.ascontiguousarray(features).data).hexdigest()


def widen(folder: Path) -> str:
    """A checkpoint file that is widened into another one; nothing else may be left."""
    narrow, source, target = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 8)), folder / "a", folder / "b"
    if not source.exists():
        torch.manual_seed(0)
        torch.save(nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 8)).state_dict(), folder / "c")
        os.replace(folder / "c", source)
    if not target.exists():
        fpe.expand_checkpoint(source, target, narrow, alpha=2, example_inputs=torch.zeros(1, 512))
    left = sorted(path.name for path in folder.iterdir())
    if left != ["a", "b"]:
        raise RuntimeError(f"a killed widening left {left}")
    return _digest(torch.load(target, weights_only=True))


def grid(folder: Path) -> str:
    """A study of a few runs, which goes on from those that are finished."""
    config = Path(__file__).parent / "reliability_study.yaml"
    study(["boolean", "--config", str(config), "--output", str(folder / "out")], Console(file=io.StringIO()))
    rows = [line.split(",") for line in (folder / "out" / "results.csv").read_text().splitlines()]
    timed = rows[0].index("seconds") if "seconds" in rows[0] else len(rows[0])
    return "\n".join(sorted(",".join(row[:timed] + row[timed + 1 :]) for row in rows))


JOBS: dict[str, Job] = {"fits": fit, "encoders": encode, "widened checkpoints": widen, "studies": grid}


def _digest(state: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _start(job: Job, folder: Path) -> int:
    """Run a job in a process of its own, which writes its result at the end."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()  # workers of the job go with it
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        warnings.simplefilter("ignore")
        (folder.parent / f"{folder.name}.result").write_text(job(folder))
        code = 0
    except BaseException as error:
        (folder.parent / f"{folder.name}.result").write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _run(job: Job, folder: Path) -> str:
    _, status = os.waitpid(_start(job, folder), 0)
    result = folder.parent / f"{folder.name}.result"
    return result.read_text() if result.exists() else f"no result, wait status {status}"


def kill(name: str, count: int, root: Path, seed: int) -> tuple[int, int, list[str]]:
    """Kill a job at random moments of its run, up to three times in a row, and let it end.

    Args:
        name: Name of the job.
        count: How many times to kill.
        root: A folder for all runs.
        seed: Of the moments.

    Returns:
        Kills, kills after which the job ended as the undisturbed one, and what else was found.
    """
    job, draw = JOBS[name], random.Random(f"{name} {seed}")
    (root / "whole").mkdir(parents=True)
    began = time.monotonic()
    expected = _run(job, root / "whole")
    lasts = time.monotonic() - began
    tried, held, faults = 0, 0, []
    for number in itertools.count():
        if tried >= count:
            break
        folder = root / str(number)
        folder.mkdir()
        kills = 0
        for _ in range(draw.choice([1, 1, 2, 3])):
            child = _start(job, folder)
            time.sleep(draw.random() * lasts)
            if os.waitpid(child, os.WNOHANG) == (0, 0):
                os.killpg(child, signal.SIGKILL) if os.getpgid(child) == child else os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kills += 1
        if not kills:
            continue
        (folder.parent / f"{folder.name}.result").unlink(missing_ok=True)
        found = _run(job, folder)
        tried += kills
        held += kills * (found == expected)
        if found != expected:
            faults.append(f"{name} after {kills} kills in {folder}: {found[:200]}")
    return tried, held, faults
