"""Compiled modules, compiled parts of modules, and several splits under the compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from boring import Plain, equal, outcome, resumable, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.sparse import check_masks


class Forward(Plain):
    """Calls its network through forward."""

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def step(self, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])


class CompiledPart(Plain):
    """Compiles its network, as many projects do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(self.net, backend="aot_eager", fullgraph=True)


class CompiledInPlace(Plain):
    """Compiles its network without wrapping it."""

    def __init__(self) -> None:
        super().__init__()
        self.net.compile(backend="aot_eager", fullgraph=True)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(make: Any, directory: Path, step: int | None = None) -> dict[str, Any]:
    saving = ModelCheckpoint(directory, filename="{step}", save_top_k=-1, every_n_train_steps=2)
    callback = ExpansionCallback(step=[3, 5])
    fitted = trainer(callback, saving, directory=directory, max_epochs=2)
    fitted.fit(make(), resumable(), ckpt_path=directory / f"step={step}.ckpt" if step else None)
    check_masks(fitted.lightning_module)
    found = outcome(fitted)
    found["model"] = {name.replace("_orig_mod.", ""): tensor for name, tensor in found["model"].items()}
    found["held"] = [[name.replace("_orig_mod.", "") for name in names] for names in found["held"]]
    return found


MAKERS = {
    "whole module": lambda: torch.compile(Plain(), backend="aot_eager"),
    "whole module with forward": lambda: torch.compile(Forward(), backend="aot_eager"),
    "one network": CompiledPart,
    "one network in place": CompiledInPlace,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_compiled_training_ends_as_uncompiled_training_and_resumes(name: str, tmp_path: Path) -> None:
    expected = run(Plain, tmp_path / "eager")
    found = run(MAKERS[name], tmp_path / "compiled")
    assert found["model"]["net.0.weight"].shape == (24, 48)
    assert found["held"] == expected["held"]
    for key, tensor in expected["model"].items():
        assert torch.allclose(found["model"][key].float(), tensor.float(), atol=1e-5), key
    assert equal(run(MAKERS[name], tmp_path / "compiled", 4), found)


def test_compiled_code_is_used_again_after_many_splits() -> None:
    """More shapes than the compiler keeps code for, which would leave the network uncompiled."""
    seen: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(len(inputs))
        return graph

    class Counted(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net[0] = torch.nn.Linear(48, 2)
            self.net[1] = torch.nn.BatchNorm1d(2)
            self.net[3] = torch.nn.Linear(2, 3)
            self.net.compile(backend=backend)

    with torch._dynamo.config.patch(recompile_limit=2):
        # Two callbacks: what one holds open while it looks on, the other must not leave open.
        callbacks = ExpansionCallback(step=[1, 3]), ExpansionCallback(step=[2, 4])
        trainer(*callbacks, max_epochs=1).fit(Counted(), resumable())
    assert len(seen) >= 4, "some splits left the network uncompiled"
