"""Under FSDP2, two CPU processes end as one does; what was not tested there is refused before anything is trained."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import boring
import pytest
import torch
from boring import data, equal, loader, start, trainer
from fsdp2_worker import Blocks, accumulating, fit, outcome
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpandableModelParallelStrategy, ExpansionCallback
from fpe_lightning.callbacks.fsdp2.checks import TESTED, check_sharding
from fpe_lightning.callbacks.fsdp2.exchange import whole_parameters
from fpe_lightning.data import BatchLoader
from fpe_lightning.sites.recorder import CallWatcher
from fpe_lightning.sparse import check_masks

if not torch.__version__.startswith(TESTED):
    pytest.skip(f"FSDP2 is let in for torch {', '.join(TESTED)} alone", allow_module_level=True)

WORKER = Path(__file__).with_name("fsdp2_worker.py")


def processes(directory: Path, *runs: str) -> None:
    """Train on two processes; rank 0 saves what each run ends with."""
    output = start(WORKER, directory, 2, *runs)
    # Not the exit code: gloo sometimes aborts a process that has done everything.
    assert all((directory / f"{run}.pt").exists() for run in runs), output[-4000:]


# In double precision.
close = partial(boring.close, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes end with, and their checkpoints."""
    directory = tmp_path_factory.mktemp("two")
    processes(directory, "full", "shards", "accumulate", "SGD", "plain", *RESUMED, "shrink")
    return directory


RESUMED = ("resume-full-2", "resume-full-4", "resume-shards-4", "resume-shards-11")


def ended(directory: Path, name: str) -> dict[str, Any]:
    return torch.load(directory / f"{name}.pt", weights_only=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What one process ends with, and its checkpoints."""
    directory = tmp_path_factory.mktemp("one")
    return directory, outcome(fit(directory, 1))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["full", "shards", *RESUMED, "shrink"])
def test_two_processes_end_as_one_and_resume_from_any_step(
    two: Path, one: tuple[Path, dict[str, Any]], name: str
) -> None:
    found = ended(two, name)
    assert found["widths"] == [104, 96, 11]
    assert close(found, one[1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_split_in_the_middle_of_accumulation_keeps_what_was_gathered(two: Path, tmp_path: Path) -> None:
    found = fit(tmp_path, 1, callback=accumulating(), accumulate_grad_batches=3)
    assert close(ended(two, "accumulate"), outcome(found))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_another_optimizer_clipping_and_a_monitor(two: Path, tmp_path: Path) -> None:
    metrics = (two / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert "interference/net.0.up/feature_capacity" in metrics
    assert close(ended(two, "SGD"), outcome(fit(tmp_path, 1, module=Blocks("SGD"), gradient_clip_val=0.5)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_with_another_number_of_processes(
    two: Path, one: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    assert close(outcome(fit(tmp_path / "two to one", 1, two / "full" / "step=6.ckpt")), one[1])
    alone = fit(tmp_path / "SGD", 1, module=Blocks("SGD"))
    processes(tmp_path, "resume-SGD-6")
    assert close(ended(tmp_path, "resume-SGD-6"), outcome(alone))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_the_opt_in_a_run_stops_widens_its_file_and_resumes(two: Path, tmp_path: Path) -> None:
    """The same for every strategy that shards parameters; FSDP2 needs none of our classes for it."""
    options: dict[str, Any] = {"alpha": 2, "sites": "net.[01].*"}
    batch = next(iter(BatchLoader(*data().tensors, batch_size=4)))
    source = two / "plain" / "step=5.ckpt"
    fpe.expand_checkpoint(source, tmp_path / "widened.ckpt", Blocks(), example_batch=batch, **options)
    processes(tmp_path, "widened")
    live = fit(tmp_path / "live", 1, callback=ExpansionCallback(step=5, **options))
    assert close(ended(tmp_path, "widened"), outcome(live))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_that_split_differently_are_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="After a split, rank 1 of 2 differs from rank 0 in weights, masks or"):
        processes(tmp_path, "drift")


def sharded(shape: tuple[int, ...] = (1,), steps: int = 2, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Blocks after some steps."""
    net = Blocks().net
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replica", "shard")[-len(shape) :])
    for block in net:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(net, mesh=mesh, **options)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    train(net, optimizer, steps)
    return net, optimizer


X = data().tensors[0].double()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net(X).pow(2).sum().backward()
        optimizer.step()


def names(net: nn.Module) -> list[str]:
    return [name for name, _ in net.named_parameters() if name.startswith(("0.", "1."))]


@pytest.mark.parametrize("full", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["one file", "shards"])
def test_one_sharded_process_is_bit_identical_to_an_ordinary_run_and_resumes(full: bool, tmp_path: Path) -> None:
    def run(ckpt_path: Path | None = None) -> dict[str, Any]:
        strategy = ExpandableModelParallelStrategy(1, save_distributed_checkpoint=not full)
        return outcome(fit(tmp_path / "one", 1, ckpt_path, strategy=strategy))

    expected = outcome(fit(tmp_path, 1))
    assert expected["widths"] == [104, 96, 11]
    assert equal(run(), expected)
    assert equal(run(tmp_path / "one" / "step=4.ckpt"), expected)
    for step, width in ((1, 13), (6, 52)):
        module = Blocks()
        tested = trainer(ExpansionCallback(step=1), strategy=ExpandableModelParallelStrategy(1))
        tested.test(module, loader(), ckpt_path=tmp_path / "one" / f"step={step}.ckpt", verbose=False)
        assert module.net[0].up.out_features == width


def test_what_was_not_tested_is_refused_when_training_starts(tmp_path: Path) -> None:
    def run(*callbacks: Any, module: Any = None) -> None:
        strategy = ExpandableModelParallelStrategy(1)
        trainer(*callbacks, directory=tmp_path, strategy=strategy).fit(module or Blocks(), loader())

    with pytest.raises(MisconfigurationException, match="holds an average of the weights"):
        run(ExpansionCallback(step=1), StochasticWeightAveraging(0.01))
    with pytest.raises(MisconfigurationException, match=r'`layout="grouped"` was not tested under FSDP2'):
        run(ExpansionCallback(fpe.Expansion(partition="shared", layout="grouped"), step=1))

    class Whole(Blocks):
        def configure_model(self) -> None:
            pass

    with pytest.raises(MisconfigurationException, match="No parameter of Whole is sharded by FSDP2"):
        run(ExpansionCallback(step=1), module=Whole())

    class Taught(Blocks):
        def configure_model(self) -> None:
            self.teacher = copy.deepcopy(self.net).requires_grad_(False)
            super().configure_model()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net.parameters(), lr=0.1)

    with pytest.raises(MisconfigurationException, match=r"another \(`teacher` follows `net`\), and copies cannot"):
        run(ExpansionCallback(step=1), module=Taught())


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        ((1,), {}),
        ((1,), {"reshard_after_forward": False}),
        pytest.param((1, 1), {}, marks=pytest.mark.slow),  # shards within, replicas across
    ],
    ids=["default", "whole between passes", "hybrid"],
)
def test_expand_works_on_whole_parameters_without_lightning(mesh: tuple[int, ...], options: dict[str, Any]) -> None:
    net, optimizer = sharded(mesh, **options)
    plain = Blocks().net
    other = torch.optim.AdamW(plain.parameters(), lr=0.01)
    train(plain, other)
    for _ in range(2):
        with torch.no_grad():
            net(X)  # leaves the root whole
        sites = fpe.find_sites(net, X)
        with whole_parameters(net, names(net), [optimizer]):
            report = fpe.expand(net, sites=[site for site in sites if site.name != "2.up"], optimizer=optimizer)
        assert report == fpe.expand(plain, sites=["0.up", "1.up"], optimizer=other, example_inputs=X)
        for model, each in ((net, optimizer), (plain, other)):
            train(model, each)
        check_masks(net)
        for found, expected in zip(net.parameters(), plain.parameters(), strict=True):
            assert torch.equal(found.full_tensor(), expected)
            for key, value in other.state[expected].items():
                state = optimizer.state[found][key]
                assert torch.equal(state.full_tensor() if hasattr(state, "full_tensor") else state, value)
    assert len(optimizer.state) == len(list(net.parameters()))


@pytest.mark.usefixtures("_alone")
def test_a_split_before_the_first_forward_pass() -> None:
    (net, optimizer), plain = sharded(steps=0), Blocks().net
    other = torch.optim.AdamW(plain.parameters(), lr=0.01)
    with whole_parameters(net, names(net), [optimizer]):
        fpe.expand(net, sites=fpe.find_sites(net, X)[:2], optimizer=optimizer)
    fpe.expand(plain, sites=["0.up", "1.up"], optimizer=other, example_inputs=X)
    for model, each in ((net, optimizer), (plain, other)):
        train(model, each)
    for found, expected in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(found.full_tensor(), expected)


@pytest.mark.usefixtures("_alone")
def test_mixed_precision_keeps_the_full_precision_of_the_weights() -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    net, optimizer = sharded(mp_policy=policy)
    before = net[0].up.bias.detach().full_tensor().clone()
    calls: list[Any] = []
    watcher = CallWatcher(net, lambda *call: calls.append(call) is None)
    net(X)
    watcher.stop()
    assert calls[0][2][0].dtype == torch.float64, "what comes in, before it is cast"
    with whole_parameters(net, names(net), [optimizer]):
        fpe.expand(net, sites=fpe.find_sites(net, X)[:1], optimizer=optimizer)
    assert torch.equal(net[0].up.bias.detach().full_tensor(), before.repeat_interleave(2))
    train(net, optimizer)
    check_masks(net)


@pytest.mark.usefixtures("_alone")
def test_an_error_inside_leaves_everything_as_it_was() -> None:
    net, optimizer = sharded()
    parameters = list(net.parameters())
    groups = [list(group["params"]) for group in optimizer.param_groups]
    states = {id(parameter): optimizer.state[parameter] for parameter in parameters}
    with pytest.raises(ValueError, match="alpha=99"), whole_parameters(net, names(net), [optimizer]):
        fpe.expand(net, alpha=99, sites=["0.up"], optimizer=optimizer, example_inputs=X)
    assert all(now is before for now, before in zip(net.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], groups[0], strict=True))
    assert all(optimizer.state[parameter] is states[id(parameter)] for parameter in parameters)
    assert len(optimizer.state) == len(parameters)
    train(net, optimizer)


def hooked(net: Any, optimizer: Any) -> None:
    net[0].up.weight.register_hook(lambda grad: grad)


def left_out(net: Any, optimizer: Any) -> None:
    net[0].up.weight = nn.Parameter(torch.zeros(13, 48))


def factored(net: Any, optimizer: Any) -> None:
    optimizer.state[net[0].up.weight]["row_var"] = torch.zeros(13, 1)


def odd_state(net: Any, optimizer: Any) -> None:
    optimizer.state[net[0].up.weight]["history"] = [torch.zeros(13, 48)]


def compiled(net: Any, optimizer: Any) -> None:
    net[1].compile(backend="eager")


def computing(net: Any, optimizer: Any) -> None:
    from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState

    net[0]._get_fsdp_state()._fsdp_param_groups[0]._training_state = TrainingState.FORWARD


def unreduced(net: Any, optimizer: Any) -> None:
    net.set_requires_gradient_sync(False)
    net(X).sum().backward()


REFUSED: list[tuple[Any, str]] = [
    (hooked, "`0.up.weight` has gradient hooks, which a sharded parameter would lose"),
    (left_out, "`0.up.weight` is not sharded by FSDP2, while others are"),
    (factored, r"AdamW state `row_var` of `0.up.weight` has shape \(13, 1\)"),
    (odd_state, "AdamW state `history` of `0.up.weight` is a list"),
    (compiled, "`1` is compiled, which was not tested under FSDP2"),
    (computing, "inside of a forward or backward pass is not possible"),
    (unreduced, "Gradients wait for their reduction"),
]


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[change.__name__ for change, _ in REFUSED])
def test_what_an_exchange_would_lose_is_refused_before_it(change: Any, message: str) -> None:
    net, optimizer = sharded()
    change(net, optimizer)
    before = list(net.parameters())
    with pytest.raises(ValueError, match=message), whole_parameters(net, names(net), [optimizer]):
        pass
    assert all(now is then or change is unreduced for now, then in zip(net.parameters(), before, strict=True))


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload_policy": CPUOffloadPolicy(pin_memory=False)}, "is offloaded to the CPU, which was not tested"),
        ({"shard_placement_fn": lambda p: Shard(p.dim() - 1)}, "is sharded along axis 1, and only axis 0 was tested"),
    ],
    ids=["offload", "placement"],
)
def test_ways_of_sharding_that_were_not_tested_are_refused(options: dict[str, Any], message: str) -> None:
    net, optimizer = sharded(**options)
    with pytest.raises(ValueError, match=message), whole_parameters(net, names(net), [optimizer]):
        pass


@pytest.mark.usefixtures("_alone")
def test_tied_weights_are_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
    message = "`1.weight` is shared by several modules, and cannot be exchanged under FSDP2"
    with pytest.raises(ValueError, match=message), whole_parameters(net, ["1.weight"]):
        pass


@pytest.mark.usefixtures("_alone")
def test_tensor_parallelism_is_refused() -> None:
    net = Blocks().net
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "tensor"))
    parallelize_module(net[0], mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(net, mesh=mesh["data"])
    with pytest.raises(ValueError, match="is split by tensor parallelism too; splits need `tensor_parallel_size=1`"):
        check_sharding(net)


@pytest.mark.usefixtures("_alone")
def test_several_optimizers_of_one_parameter_are_refused() -> None:
    net, optimizer = sharded()
    second = torch.optim.SGD(net.parameters(), lr=0.1)
    with (
        pytest.raises(ValueError, match="is held by 2 optimizers"),
        whole_parameters(net, names(net), [optimizer, second]),
    ):
        pass


def test_a_model_that_is_not_sharded_is_refused() -> None:
    with pytest.raises(ValueError, match="No parameter of Linear is sharded by FSDP2; call `fully_shard`"):
        check_sharding(nn.Linear(2, 2))


def test_the_strategy_is_for_data_parallelism_and_versions_that_were_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        MisconfigurationException, match=r"found `tensor_parallel_size=2`. Use `tensor_parallel_size=1`"
    ):
        ExpandableModelParallelStrategy(tensor_parallel_size=2)
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    with pytest.raises(
        MisconfigurationException, match=r"was tested with torch .*; found 2.99.0. Widen .*expand_checkpoint"
    ):
        ExpandableModelParallelStrategy()
