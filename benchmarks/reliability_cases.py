"""Tampered checkpoints, bad input and random structures: what was tried, and what held."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.cli import main
from fpe_lightning.sparse import check_masks
from tests.support.nets import equal, snapshot
from tests.support.tampered import trial

Outcome = tuple[int, int, list[str]]
CONFIG = Path(__file__).parents[1] / "configs" / "boolean.yaml"


def tampered(count: int, seed: int) -> Outcome:
    """Checkpoints of every layout that were tampered with, each loaded into a narrow or a wide model."""
    return _each(range(seed * 10**6, seed * 10**6 + count), trial)


def _each(seeds: range, check: Callable[[int], object]) -> Outcome:
    held, faults = 0, []
    for seed in seeds:
        try:
            check(seed)
            held += 1
        except Exception as error:
            faults.append(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}")
    return len(seeds), held, faults


PARTITIONS: tuple[Any, ...] = ("random", "contiguous", "shared", "feature")
PRUNINGS: tuple[Any, ...] = ("total", "incoming", "outgoing")
LAYOUTS: tuple[Any, ...] = ("masked", "masked", "folded", "grouped")
VALUES = ("-8", "0", "none", "[1,0]", "2.5", "1e99", "nan", "yes", "{}", "a_file", "a_file/below", "''", "[[1]]")
KEYS = (
    *("model.network.init_args.hidden", "model.network.init_args.in_features", "model.network.init_args.activation"),
    *("model.network", "model.task", "model", "data", "data.init_args.batch_size", "data.init_args.seed"),
    *(
        "data.init_args.clauses",
        "data.init_args.coding",
        "trainer.max_epochs",
        "trainer.accelerator",
        "trainer.devices",
    ),
    *("trainer.precision", "trainer.callbacks.epoch", "trainer.logger.init_args.save_dir", "ckpt_path", "config"),
    *("trainer.nonsense", "modle", "seed_everything", "trainer.limit_train_batches"),
)


def bad_input(count: int, seed: int) -> Outcome:
    """Command lines with a value that may be bad: exit code 0, or 2 with one sentence and no traceback."""
    pairs = [(key, value) for key in KEYS for value in VALUES]
    chosen = random.Random(seed).sample(pairs, min(count, len(pairs)))
    held, faults, before = 0, [], Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("a_file").write_text("hello")
            for key, value in chosen:
                fault = _command_line(key, value)
                held += fault is None
                faults += [fault] if fault else []
        finally:
            os.chdir(before)
    return len(chosen), held, faults


def _command_line(key: str, value: str) -> str | None:
    words = ["fit", f"--config={CONFIG}", "--trainer.fast_dev_run=true", "--test_after_fit=false", f"--{key}={value}"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: Any = main(words)
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException as error:
            return f"--{key}={value}: {type(error).__name__}: {str(error)[:200]}"
    said = err.getvalue()
    sentences = [line for line in said.splitlines() if line.startswith("error: ")]
    if "Traceback" in said or code not in (0, 2) or (code == 2 and len(sentences) != 1):
        return f"--{key}={value}: code {code}, {len(sentences)} sentences: {said[-200:]}"
    return None


def structures(count: int, seed: int) -> Outcome:
    """Random networks, each split once or twice by random options, with every law checked."""
    return _each(range(seed * 10**6, seed * 10**6 + count), _property)


def _network(draw: random.Random) -> tuple[nn.Module, Tensor]:
    widths = [draw.choice([2, 3, 4, 5, 8, 13, 16, 32]) for _ in range(draw.randint(2, 4))]
    activation, bias = draw.choice([nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.Sigmoid]), draw.random() < 0.7
    layers: list[nn.Module] = []
    if draw.random() < 0.25:
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=bias), nn.BatchNorm2d(after), activation()]
        head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 3, bias=bias)]
        return nn.Sequential(*layers, *head), torch.randn(2, widths[0], 6, 6)
    for before, after in itertools.pairwise(widths):
        norm = draw.choice([None, None, nn.BatchNorm1d, nn.LayerNorm])
        layers += [nn.Linear(before, after, bias=bias), *([norm(after)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], draw.randint(1, 6), bias=bias)), torch.randn(3, widths[0])


def _expansion(draw: random.Random) -> fpe.Expansion:
    return fpe.Expansion(
        alpha=draw.choice([2, 2, 2, 3, 4]),
        partition=draw.choice(PARTITIONS),
        prune=draw.choice(PRUNINGS),
        layout=draw.choice(LAYOUTS),
        seed=draw.randrange(1000),
    )


def _seen(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All that a refusal must not change; folded layers make their buffer again whenever they are saved."""
    held = optimizer.state_dict()  # of which the order of entries says nothing
    return {
        **snapshot(model),
        "objects": [id(parameter) for parameter in model.parameters()],
        "optimizer": [sorted(held["state"].items(), key=lambda entry: entry[0]), held["param_groups"]],
    }


def _property(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model, x = _network(draw)
    narrow, optimizer = copy.deepcopy(model), torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(draw.choice([1, 1, 2])):
        before, count = _seen(model, optimizer), fpe.count_nonzeros(model)
        try:
            report = fpe.expand(model, _expansion(draw), example_inputs=x, optimizer=optimizer)
        except ValueError:
            assert equal(before, _seen(model, optimizer)), "a refusal changed something"
            continue
        assert count == report.nonzeros_before == report.nonzeros_after == fpe.count_nonzeros(model), "count"
        model.train()
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        check_masks(model)
        assert fpe.count_nonzeros(model) == count, "count after steps"
        fresh, back = copy.deepcopy(narrow), copy.deepcopy(model)
        fpe.load_expanded_state_dict(fresh, model.state_dict())
        assert torch.equal(fresh.eval()(x), model.eval()(x)), "a loaded model computes something else"
        fpe.load_expanded_state_dict(back, narrow.state_dict())
        assert equal(dict(back.state_dict()), dict(narrow.state_dict())), "a shrunk model is another one"
