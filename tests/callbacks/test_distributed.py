"""DDP trains split networks as one process does; what shards parameters is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from boring import Plain, close, equal, loader, outcome, start, trainer
from ddp_worker import MODES, Noted, WithoutNorm, fit, train_by_fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    XLAStrategy,
)
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.optim import ZeroRedundancyOptimizer

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.callbacks.distributed import check_ranks_agree, check_strategy
from fpe_lightning.checkpoints import restore_structure_on_load

WORKER = Path(__file__).with_name("ddp_worker.py")


def processes(directory: Path, count: int, *modes: str) -> list[list[dict[str, Any]]]:
    """Train on several processes; what every rank ends with, for each mode."""
    output = start(WORKER, directory, count, *modes)
    files = [[directory / f"{mode}-{rank}.pt" for rank in range(count)] for mode in modes]
    assert all(path.exists() for each in files for path in each), output[-4000:]
    return [[torch.load(path, weights_only=True) for path in each] for each in files]


def alone(directory: Path, mode: str) -> dict[str, Any]:
    """What one process ends with that takes the batches of all."""
    noted = Noted()
    return {**outcome(fit(directory / "alone" / mode, noted=noted, **MODES[mode])), "seen": noted.seen}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_are_equal_at_every_split_and_end_as_one(tmp_path: Path, count: int) -> None:
    for mode, ranks in zip(MODES, processes(tmp_path, count, *MODES), strict=True):
        expected = alone(tmp_path, mode)
        epochs, splits = MODES[mode].get("max_epochs", 2), 2
        assert len(ranks[0]["seen"]) == epochs + splits + (mode == "resume"), mode
        for rank in ranks[1:]:
            # After each split, after each epoch and at the end: weights, masks, optimizer state, learning rates.
            assert equal(rank, ranks[0]), f"the ranks of {mode} drifted apart"
        assert expected["model"]["net.0.weight"].shape == (24, 48)
        assert ends_as(ranks[0], expected), mode
        if mode == "middle":
            assert [gathered for _, gathered in ranks[0]["seen"] if gathered is not None] == [True, True]
            for (found, _), (wanted, _) in zip(ranks[0]["seen"], expected["seen"], strict=True):
                assert ends_as(found, wanted)


def ends_as(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return close(*({key: each[key] for key in ("model", "optimizers", "rates")} for each in (found, expected)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    expected = outcome(fit(tmp_path))
    source = tmp_path / "step=3.ckpt"  # between the two splits, at the end of an epoch
    for count in (2, 4):
        directory = tmp_path / str(count)
        directory.mkdir()
        (directory / "from.ckpt").write_bytes(source.read_bytes())
        ((first, *others),) = processes(directory, count, "go-on")
        assert all(equal(first, other) for other in others)
        assert ends_as(first, expected)
        assert first["model"]["net.0.weight"].shape == (24, 48)
    ((earlier, _),) = processes(tmp_path, 2, "step")
    again = fit(tmp_path / "again", tmp_path / "step" / "step=3.ckpt", splits={"step": [1, 4]})
    assert ends_as(outcome(again), earlier)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("count", "mode"), [(2, "drift"), (4, "drift"), (2, "drift-moments"), (2, "drift-masks")])
def test_a_rank_that_differs_is_found_at_the_split(tmp_path: Path, count: int, mode: str) -> None:
    output = start(WORKER, tmp_path, count, mode)
    message = f"After a split, rank {count - 1} of {count} differs from rank 0 in weights, masks or optimizer state"
    assert message in output, output[-4000:]
    assert not list(tmp_path.glob("drift*.pt"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fabric_wraps_anew_after_a_split(tmp_path: Path) -> None:
    ((first, second),) = processes(tmp_path, 2, "fabric")
    assert equal(first, second)
    assert close(first, train_by_fabric(1))


@pytest.mark.parametrize(
    "strategy",
    [
        *(FSDPStrategy(), ModelParallelStrategy()),
        # Theirs cannot be made without packages of their own. They are subclasses of DDPStrategy.
        *(kind.__new__(kind) for kind in (DeepSpeedStrategy, XLAStrategy)),
    ],
    ids=["FSDP", "ModelParallel", "DeepSpeed", "XLA"],
)
def test_sharding_strategies_are_refused_in_setup(strategy: Any) -> None:
    way_out = 'Use `strategy="ddp"`.*; or .* expand the checkpoint with `fpe_lightning.expand_checkpoint`'
    message = f"single device or under DDP; found {type(strategy).__name__}, .* {way_out}"
    callback = ExpansionCallback(epoch=1)
    with pytest.raises(MisconfigurationException, match=message):
        callback.setup(fake_trainer(strategy, callback), Plain(), "fit")


def fake_trainer(strategy: Any, *callbacks: pl.Callback) -> Any:
    return SimpleNamespace(strategy=strategy, callbacks=list(callbacks), fast_dev_run=False, max_epochs=9, max_steps=-1)


def test_spawned_processes_bring_weights_back_to_a_module_that_can_take_them() -> None:
    run = pl.Trainer(
        strategy="ddp_spawn", devices=2, accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=2
    )
    assert isinstance(run.strategy, DDPStrategy)
    module = Plain()
    with pytest.raises(MisconfigurationException, match=r"`ddp_spawn` brings .*, or call `restore"):
        check_strategy(run, module)
    restore_structure_on_load(module)
    check_strategy(run, module)


def test_one_process_agrees_with_itself() -> None:
    run = trainer(max_epochs=1)
    run.fit(WithoutNorm(), loader())
    check_ranks_agree(run, run.lightning_module)


def rank_of(seed: int = 0, masks: int = 0, momentum: float = 0.0) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """A split network as one rank has it: all weights that masks differ in are zero."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
    fpe.expand(net, fpe.Paper(alpha=2), example_inputs=torch.randn(1, 16))
    mask = net[0].fpe_mask_weight
    net[0].weight.data[:, :2] = 0
    mask[:, :2] = False
    mask[0, masks] = True
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for parameter in net.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, momentum)
    return net, [optimizer]


def compare(*ranks: tuple[nn.Module, list[torch.optim.Optimizer]]) -> None:
    """Compare ranks in one process: each shows its digest to the last, which gathers all."""
    shown: list[torch.Tensor] = []

    def gather(local: torch.Tensor) -> torch.Tensor:
        shown.append(local)
        return torch.stack(shown if len(shown) == len(ranks) else [local] * len(ranks))

    strategy = SimpleNamespace(root_device=torch.device("cpu"), all_gather=gather)
    for net, optimizers in ranks:
        trainer: Any = SimpleNamespace(world_size=len(ranks), optimizers=optimizers, strategy=strategy)
        check_ranks_agree(trainer, net)


def test_equal_ranks_pass_and_any_difference_is_noticed() -> None:
    compare(rank_of(), rank_of())
    for other in (rank_of(seed=1), rank_of(masks=1), rank_of(momentum=0.5)):
        with pytest.raises(RuntimeError, match="rank 1 of 2 differs from rank 0 in weights, masks or optimizer state"):
            compare(rank_of(), other)
    with pytest.raises(RuntimeError, match="rank 1, 3 of 4 differs from rank 0"):
        compare(rank_of(), rank_of(masks=1), rank_of(), rank_of(momentum=0.5))


@pytest.mark.usefixtures("_alone")
def test_an_optimizer_that_assigns_parameters_to_processes_is_refused() -> None:
    module = WithoutNorm()
    optimizer = ZeroRedundancyOptimizer(module.parameters(), torch.optim.SGD, lr=0.1)
    message = "ZeroRedundancyOptimizer cannot continue after a split: it assigns parameters to processes"
    with pytest.raises(ValueError, match=message):
        fpe.expand(module.net, alpha=2, optimizer=optimizer, example_inputs=torch.zeros(1, 48))
    assert module.net[0].out_features == 6


@pytest.mark.usefixtures("_alone")
def test_a_communication_hook_with_a_memory_is_refused() -> None:
    strategy = DDPStrategy(ddp_comm_hook=powerSGD_hook, ddp_comm_state=PowerSGDState(torch.distributed.group.WORLD))
    with pytest.raises(MisconfigurationException, match=r"PowerSGDState, stores gradients .* such as `fp16_compress"):
        check_strategy(fake_trainer(strategy), Plain())
