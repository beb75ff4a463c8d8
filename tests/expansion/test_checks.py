"""What somebody else holds too is not split behind their back: nothing changes, and the way out is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fpe_lightning as fpe
from tests.support.nets import equal, mlp, snapshot

X = torch.zeros(2, 64)


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("part", [False, True], ids=["as a whole", "in a part"])
def test_a_model_inside_of_ddp_is_split_before_it_is_wrapped(part: bool) -> None:
    net = mlp(64, 8, 3)
    wrapped: nn.Module = DistributedDataParallel(net)
    model, name = (nn.Sequential(wrapped, nn.Linear(3, 2)), "0") if part else (wrapped, "model")
    before = snapshot(net)
    with pytest.raises(ValueError, match=f"`{name}` is wrapped in DistributedDataParallel, .* wrap that again"):
        fpe.expand(model, alpha=2, example_inputs=X)
    assert equal(before, snapshot(net))
    fpe.expand(net, alpha=2, example_inputs=X)
    DistributedDataParallel(net)(torch.randn(2, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("name", ["FullyShardedDataParallel", "DeepSpeedEngine"])
def test_other_wrappers_are_known_by_name(name: str) -> None:
    wrapper = type(name, (nn.Sequential,), {})
    with pytest.raises(ValueError, match=f"`0` is wrapped in {name}"):
        fpe.expand(nn.Sequential(type("Mine", (wrapper,), {})(mlp(64, 8, 3))), alpha=2, example_inputs=X)


@pytest.mark.usefixtures("_alone")
def test_shards_are_not_split() -> None:
    net = mlp(64, 8, 3)
    fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
    before = list(net.parameters())
    with pytest.raises(ValueError, match=r"`0.weight` is sharded, .*whole_parameters.*ExpandableModelParallelStrategy"):
        fpe.expand(net, alpha=2, example_inputs=X)
    assert all(now is then for now, then in zip(net.parameters(), before, strict=True))
