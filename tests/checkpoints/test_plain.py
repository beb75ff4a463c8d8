"""A plain model is ordinary layers: equal in weights and outputs, and of use where this package is not installed."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

import fpe_lightning as fpe
from fpe_lightning.sparse import dense_weight, pack_for_inference
from tests.support.nets import cnn, equal, mlp, snapshot, train

X = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
EXPANSIONS = {
    "masked": fpe.Paper(alpha=2),
    "grouped": fpe.Blocks(alpha=2, groups=4),
    "semi_structured": fpe.SemiStructured(),
}


def expanded(expansion: fpe.Expansion, net: nn.Module, x: Tensor = X) -> nn.Module:
    fpe.expand(net, expansion, example_inputs=x)
    train(net, AdamW(net.parameters(), lr=0.01), x)
    net.zero_grad()
    return net.eval()


def is_plain(model: nn.Module) -> bool:
    for module in model.modules():
        hooks = [value for name, value in vars(module).items() if name.endswith("hooks")]
        assert type(module).__module__.startswith("torch."), type(module)
        assert not any(hooks)
        assert not any("fpe" in name or "mask" in name or "record" in name for name in module._buffers)
        assert "fpe" not in " ".join(vars(module))
        for parameter in module._parameters.values():
            assert parameter is None or not (parameter._backward_hooks or vars(parameter))
    return True


@pytest.mark.parametrize("layout", EXPANSIONS)
def test_linear_layers(layout: str) -> None:
    wide = expanded(EXPANSIONS[layout], mlp(128, 64, 64, norm=True))
    fpe.restore_structure_on_load(wide)
    before = snapshot(wide)
    model = fpe.plain(wide)
    assert equal(before, snapshot(wide))
    assert is_plain(model)
    assert torch.allclose(model(X), wide(X), atol=1e-6)
    for ours, theirs in zip(model, wide, strict=True):
        if isinstance(ours, nn.Linear):
            assert torch.equal(ours.weight, dense_weight(theirs))
            assert (ours.in_features, ours.out_features) == ours.weight.shape[::-1]
            assert ours.weight.requires_grad
    assert int(model[0].weight.count_nonzero()) < model[0].weight.numel()
    assert list(model.state_dict()) == list(mlp(128, 64, 64, norm=True).state_dict())


@pytest.mark.parametrize("layout", ["masked", "grouped"])
def test_convolutions(layout: str) -> None:
    x = torch.randn(2, 16, 8, 8)
    wide = cnn()
    fpe.expand(wide, EXPANSIONS[layout], sites="0" if layout == "grouped" else ["0", "4"], example_inputs=x)
    model = fpe.plain(wide.eval())
    assert is_plain(model)
    assert torch.allclose(model(x), wide(x), atol=1e-6)
    assert (model[0].out_channels, model[1].num_features, model[4].in_channels) == (16, 16, 16)


def test_a_packed_model() -> None:
    wide = expanded(EXPANSIONS["semi_structured"], mlp(128, 64, 64)).bfloat16()
    weight = wide[0].weight.detach().clone()
    pack_for_inference(wide)
    model = fpe.plain(wide)
    assert is_plain(model)
    assert torch.equal(model[0].weight, weight)


def test_other_kinds_of_layers_and_several_splits() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(32, 2, 16, dropout=0, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    x = torch.randn(2, 3, 32)
    wide = Attends()
    for _ in range(2):
        fpe.expand(wide, fpe.Paper(alpha=2), example_inputs=x)
    model = fpe.plain(wide.eval())
    assert is_plain(model.layer)
    assert model.layer.linear1.out_features == 64
    assert torch.allclose(model(x), wide(x), atol=1e-6)


def test_in_place_and_tied() -> None:
    model = mlp(128, 64, 64)
    model.append(nn.Linear(128, 64))
    model[3].weight = model[0].weight
    tied, other = model[0].weight, mlp(64, 8, 3)
    assert fpe.plain(model, inplace=True) is model
    assert model[0].weight is model[3].weight is tied
    twice = fpe.plain(model)
    assert twice[0].weight is twice[3].weight is not tied
    assert fpe.plain(other, inplace=True) is other
    assert is_plain(fpe.plain(expanded(EXPANSIONS["masked"], mlp(128, 64, 64)), inplace=True))


def test_a_lightning_module_leaves_its_trainer_behind() -> None:
    model = pl.LightningModule()
    model.net = expanded(EXPANSIONS["masked"], mlp(128, 64, 64))
    model.trainer = pl.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    model.trainer.handle = (each for each in ())  # nobody can copy a generator
    found = fpe.plain(model)
    assert is_plain(found.net)
    assert found._trainer is None
    assert model._trainer is not None


def without_this_package(code: str, *args: str) -> str:
    """Run code in a process in which this package cannot be imported."""
    block = "import sys; sys.modules['fpe_lightning'] = None\nimport torch\nfrom torch import nn\n"
    done = subprocess.run([sys.executable, "-c", block + code, *args], capture_output=True, text=True, cwd="/")
    assert not done.returncode, done.stderr
    return done.stdout


def test_a_whole_module_and_a_plain_file_are_read_without_this_package(tmp_path: Path) -> None:
    wide = expanded(EXPANSIONS["grouped"], mlp(128, 64, 64, norm=True))
    torch.save(fpe.plain(wide), tmp_path / "model.pt")
    fpe.save_plain(wide, tmp_path / "new" / "plain.pt")
    torch.save((X, wide(X).detach()), tmp_path / "data.pt")
    code = """
x, out = torch.load(sys.argv[1] + "/data.pt")
model = torch.load(sys.argv[1] + "/model.pt", weights_only=False)
assert torch.allclose(model(x), out, atol=1e-6)
FILE = sys.argv[1] + "/new/plain.pt"
model = nn.Sequential(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Linear(64, 64)).eval()
how = torch.load(FILE, weights_only=True)["how_to_build"]
exec(how.partition("\\n\\n")[2])
assert torch.allclose(model(x), out, atol=1e-6)
print(model[0], model[1].num_features)
"""
    found = without_this_package(code, str(tmp_path))
    assert found == "Linear(in_features=128, out_features=128, bias=True) 128\n"
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["plain.pt"]


def test_a_plain_model_is_exported(tmp_path: Path) -> None:
    wide = expanded(EXPANSIONS["masked"], mlp(128, 64, 64))
    program = torch.export.export(fpe.plain(wide), (X,))
    assert torch.allclose(program.module()(X), wide(X), atol=1e-6)
    scripted = torch.jit.script(fpe.plain(wide))
    assert torch.allclose(scripted(X), wide(X), atol=1e-6)


def test_sharded_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fpe_lightning.checkpoints.plain_layers.is_sharded", lambda parameter: True)
    with pytest.raises(ValueError, match=r"`0.weight` is in shards on several processes; load a full checkpoint"):
        fpe.plain(mlp(128, 64, 64))


def test_a_plain_model_is_another_object_throughout() -> None:
    wide = expanded(EXPANSIONS["masked"], mlp(128, 64, 64))
    state: dict[str, Any] = copy.deepcopy(wide.state_dict())
    with torch.no_grad():
        for parameter in fpe.plain(wide).parameters():
            parameter.zero_()
    assert equal(dict(wide.state_dict()), dict(state))


class Kept:
    """An object in an attribute, as a module keeps outputs for the end of an epoch."""

    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs


def test_a_module_that_keeps_outputs_of_a_graph() -> None:
    model = expanded(fpe.Paper(alpha=2), nn.Sequential(nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 3)))
    outputs = model(X)
    model.outputs, model.several, model.inside = outputs, {"a": [outputs * 2]}, Kept(outputs * 3)  # type: ignore[assignment]
    result = fpe.plain(model)
    assert is_plain(result)
    assert torch.equal(result.outputs, outputs)  # type: ignore[arg-type]
    assert torch.equal(result.several["a"][0], outputs * 2)  # type: ignore[index]
    assert torch.equal(result.inside.outputs, outputs * 3)  # type: ignore[union-attr]
    assert result.outputs.grad_fn is None  # type: ignore[union-attr]
    outputs.sum().backward()  # the graph of the module is whole
    assert model[0].weight.grad is not None  # type: ignore[union-attr]
