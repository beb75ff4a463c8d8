"""A split model leaves the Trainer: copies, files, export, Fabric."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from boring import Plain, equal, network, resumable, trainer
from lightning.fabric import Fabric
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.sparse import check_masks, mask_of, structure_of

X = torch.randn(5, 48, generator=torch.Generator().manual_seed(5))


WAYS = {
    "masked": fpe.Paper(),
    "blocks": fpe.Blocks(groups=2),
    "blocks with holes": fpe.Blocks(groups=2, prune="total"),
}


@pytest.fixture(scope="module", params=WAYS)
def split(request: pytest.FixtureRequest) -> nn.Module:
    """The network of a module that was split while training."""
    module = Plain()
    trainer(ExpansionCallback(WAYS[request.param], step=[1, 3]), max_epochs=1).fit(module, resumable())
    assert (structure_of(module.net[0]) is None) == (request.param == "masked")
    assert (mask_of(module.net[0]) is None) == (request.param == "blocks")
    return module.net.eval()


def built(*layers: nn.Module) -> nn.Sequential:
    net = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return net


IMAGES = torch.randn(5, 32, 6, 6, generator=torch.Generator().manual_seed(5))
HEAD = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3))
LEAVING: dict[str, tuple[nn.Module, torch.Tensor, fpe.Expansion]] = {
    "masked": (network(), X, fpe.Paper()),
    "grouped": (network(), X, fpe.Expansion(partition="shared", layout="grouped")),
    "semi_structured": (
        built(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)),
        torch.randn(5, 64, generator=torch.Generator().manual_seed(5)),
        fpe.SemiStructured(),
    ),
    "masked convolutions": (
        built(
            *(nn.Conv2d(32, 8, 3), nn.GroupNorm(2, 8), nn.Tanh(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)),
            *(nn.ChannelShuffle(2), HEAD),
        ),
        *(IMAGES, fpe.Paper()),
    ),
    "grouped convolutions": (
        built(nn.Conv2d(32, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), copy.deepcopy(HEAD)),
        *(IMAGES, fpe.Blocks(groups=1, outgoing="partition")),
    ),
}


@pytest.fixture(scope="module", params=LEAVING)
def leaving(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    """A split network of each kind that is exported, with an input."""
    net, x, expansion = copy.deepcopy(LEAVING[request.param])
    fpe.expand(net, expansion, example_inputs=x)
    trained(net, x)
    return net.eval(), x


def trained(net: nn.Module, x: torch.Tensor = X) -> dict[str, torch.Tensor]:
    net = net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).pow(2).sum().backward()
        optimizer.step()
    check_masks(net)
    return dict(net.state_dict())


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_compute_and_train_alike(split: nn.Module, how: str) -> None:
    if how == "deepcopy":
        twin = copy.deepcopy(split)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(split))
    else:
        file = io.BytesIO()
        torch.save(split, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert torch.equal(twin(X), split(X))
    assert equal(trained(twin), trained(copy.deepcopy(split)))


def test_a_lightning_module_is_copied_too() -> None:
    module = Plain(optimizer=torch.optim.AdamW)
    trainer(ExpansionCallback(step=1), max_epochs=1).fit(module, resumable())
    twin = pickle.loads(pickle.dumps(copy.deepcopy(module)))
    assert equal(dict(twin.state_dict()), dict(module.state_dict()))
    trainer(ExpansionCallback(step=1), max_epochs=1).fit(twin, resumable())
    assert twin.net[0].out_features == 24


@pytest.mark.parametrize("strict", [True, False])
def test_export_computes_the_same(leaving: tuple[nn.Module, torch.Tensor], strict: bool) -> None:
    net, x = leaving
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},), strict=strict)
    assert torch.allclose(program.module()(x), net(x), atol=1e-6)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    assert torch.allclose(loaded(x[:3]), net(x[:3]), atol=1e-6)


def test_onnx_computes_the_same(leaving: tuple[nn.Module, torch.Tensor], tmp_path: Path) -> None:
    net, x = leaving
    batch = torch.export.Dim("batch", min=2)
    program = torch.onnx.export(net, (x,), dynamic_shapes=({0: batch},), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "split.onnx")
    onnx.checker.check_model(tmp_path / "split.onnx", full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "split.onnx", providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    for each in (x, x[:3]):
        (found,) = session.run(None, {name: each.numpy()})
        assert torch.allclose(torch.from_numpy(found), net(each), atol=1e-5)


def test_a_graph_traced_by_fx_trains_masked(split: nn.Module) -> None:
    twin = copy.deepcopy(split)
    traced = torch.fx.symbolic_trace(twin)
    assert torch.equal(traced(X), split(X))
    traced.train()(X).sum().backward()
    mask, grad = mask_of(twin[0]), traced.get_parameter("0.weight").grad
    assert grad is not None
    mask = torch.ones_like(grad, dtype=torch.bool) if mask is None else mask
    assert not grad[~mask].any()
    assert grad[mask].any()
    # The graph goes with its buffers, wherever they move.
    assert torch.equal(traced.eval().double()(X.double()), twin.eval().double()(X.double()))


def test_inference_mode(split: nn.Module) -> None:
    with torch.inference_mode():
        expected = split(X)
    assert torch.equal(expected, split(X))


def test_fabric_trains_on_after_a_split() -> None:
    def run(fabric: bool) -> dict[str, torch.Tensor]:
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        wrapped, stepping = model, optimizer
        launcher = Fabric(accelerator="cpu", devices=1)
        if fabric:
            wrapped, stepping = launcher.setup(model, optimizer)
        for step, (x, y) in enumerate(resumable()):
            if step == 3:
                # The model inside of the wrapper is split; its wrapped optimizer may be passed as it is.
                fpe.expand(model, alpha=2, optimizer=stepping, example_inputs=x)
            stepping.zero_grad()
            loss = F.cross_entropy(wrapped(x), y)
            launcher.backward(loss) if fabric else loss.backward()
            stepping.step()
        check_masks(model)
        assert model[0].out_features == 12
        return dict(model.state_dict())

    assert equal(run(True), run(False))


def test_fabric_saves_and_loads(tmp_path: Path) -> None:
    launcher = Fabric(accelerator="cpu", devices=1)

    def made() -> tuple[Any, Any]:
        model = network()
        return launcher.setup(model, torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1))

    def step(model: Any, optimizer: Any) -> None:
        optimizer.zero_grad()
        launcher.backward(model(X).pow(2).sum())
        optimizer.step()

    model, optimizer = made()
    step(model, optimizer)
    fpe.expand(model.module, alpha=2, optimizer=optimizer, example_inputs=X)
    step(model, optimizer)
    launcher.save(tmp_path / "state.ckpt", {"model": model, "optimizer": optimizer})
    other, others = made()
    state = launcher.load(tmp_path / "state.ckpt")
    fpe.load_expanded_state_dict(other.module, state["model"], optimizer=others)
    others.load_state_dict(state["optimizer"])
    for each in ((model, optimizer), (other, others)):
        step(*each)
        check_masks(each[0])
    assert other.module[0].out_features == 12
    assert equal(dict(other.state_dict()), dict(model.state_dict()))
    assert equal(others.state_dict(), optimizer.state_dict())
