"""What is masked stays exactly zero, whatever trains, copies, saves or compiles the module."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from odd_modules import TwoWeights, half, masked_net
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from fpe_lightning.sparse import check_masks, mask_of, masked_parameters, set_mask
from fpe_lightning.sparse.masked import mask_gradient


def train(net: nn.Module, optimizer: Optimizer, steps: int = 5, clip: float | None = None) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 4, generator=generator)).pow(2).sum().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        partial(SGD, lr=0.01, momentum=0.9, weight_decay=0.1),
        partial(SGD, lr=0.01, momentum=0.9, nesterov=True),
        partial(Adam, lr=0.01, weight_decay=0.1, amsgrad=True),
        partial(AdamW, lr=0.01, weight_decay=0.1),
        partial(NAdam, lr=0.01),
        partial(RMSprop, lr=0.01, momentum=0.9, centered=True),
        partial(Adagrad, lr=0.01),
    ],
)
@pytest.mark.parametrize("clip", [None, 0.1])
def test_nothing_grows_back_and_everything_else_trains(make: Callable[..., Optimizer], clip: float | None) -> None:
    net = masked_net()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    train(net, make(net.parameters()), clip=clip)
    for name, parameter, mask in masked_parameters(net):
        assert not parameter.detach()[~mask].any(), name
        assert parameter.grad is not None
        assert not parameter.grad[~mask].any(), name
        assert (parameter.detach() != before[name])[mask].all(), name


def test_masking_sets_weights_to_zero_at_once_and_keeps_the_others() -> None:
    layer = nn.Linear(4, 6)
    before, mask = layer.weight.detach().clone(), half((6, 4))
    parameter = layer.weight
    set_mask(layer, "weight", mask)
    assert layer.weight is parameter
    assert torch.equal(layer.weight, before * mask)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_gradients_do_not_reach_masked_places(bad: float) -> None:
    weight, mask = torch.ones(2, 3, requires_grad=True), half((2, 3))
    mask_gradient(weight, mask).backward(torch.full((2, 3), bad))
    assert weight.grad is not None
    assert torch.equal(weight.grad[~mask], torch.zeros(int((~mask).sum())))
    assert not weight.grad[mask].isfinite().any()


def test_without_a_gradient_the_weight_itself_is_used() -> None:
    weight = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        assert mask_gradient(weight, torch.tensor([True, False])) is weight


def same(left: nn.Module, right: nn.Module) -> None:
    """Both compute the same, and train the same from here on."""
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    assert [type(module) for module in left.modules()] == [type(module) for module in right.modules()]
    assert torch.equal(left(x), right(x))
    for net in (left, right):
        train(net, AdamW(net.parameters(), lr=0.01, weight_decay=0.1), steps=2)
    assert [name for name, _, _ in masked_parameters(left)] == [name for name, _, _ in masked_parameters(right)]
    for (_, ours, _), (_, theirs, _) in zip(masked_parameters(left), masked_parameters(right), strict=True):
        assert torch.equal(ours, theirs)
    check_masks(left)
    check_masks(right)


def test_deepcopy_is_masked_and_independent() -> None:
    net = masked_net()
    twin = copy.deepcopy(net)
    assert mask_of(twin[0]) is not mask_of(net[0])
    same(net, twin)


def test_pickle_keeps_classes_and_masks() -> None:
    net = masked_net()
    same(net, pickle.loads(pickle.dumps(net)))


def test_torch_save_of_the_whole_model() -> None:
    net, file = masked_net(), io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    same(net, torch.load(file, weights_only=False))


def test_state_dict_holds_the_masks() -> None:
    net, other = masked_net(), masked_net()
    train(net, SGD(net.parameters(), lr=0.1))
    assert set(net.state_dict()) >= {"0.fpe_mask_weight", "2.fpe_mask_weight", "4.fpe_mask_up", "4.fpe_mask_down"}
    other.load_state_dict(net.state_dict())
    same(net, other)


def test_safetensors_round_trip() -> None:
    net, other = masked_net(), masked_net()
    train(net, SGD(net.parameters(), lr=0.1))
    other.load_state_dict(load(save(net.state_dict())))
    same(net, other)


def test_compiles_without_a_graph_break_and_trains_alike() -> None:
    torch.manual_seed(0)
    eager = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3))
    set_mask(eager[0], "weight", half((4, 2, 3, 3)))
    set_mask(eager[2], "weight", half((6, 16)))
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 2, 4, 4)
    for net in (eager, compiled):
        optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(x).pow(2).sum().backward()
            optimizer.step()
    check_masks(twin)
    for ours, theirs in zip(eager.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_module_of_any_class_compiles() -> None:
    module = TwoWeights()
    set_mask(module, "up", half((6, 4)))
    compiled = torch.compile(module, backend="aot_eager")
    x = torch.randn(5, 4)
    assert torch.allclose(compiled(x, gain=2.0), module(x, gain=2.0))
    compiled(x).sum().backward()
    assert module.up.grad is not None
    assert not module.up.grad[~half((6, 4))].any()


def test_one_parameter_serves_two_forward_passes_before_one_backward() -> None:
    net = masked_net()
    loss = net(torch.randn(3, 4)).sum() + net(torch.randn(3, 4)).sum()
    loss.backward()
    for _, parameter, mask in masked_parameters(net):
        assert parameter.grad is not None
        assert not parameter.grad[~mask].any()


def test_per_sample_gradients_and_functional_call_are_masked() -> None:
    layer = nn.Linear(4, 6)
    set_mask(layer, "weight", half((6, 4)))
    weights = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).pow(2).sum()

    grads = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, torch.randn(5, 4))["weight"]
    assert grads.shape == (5, 6, 4)
    assert not grads[:, ~half((6, 4))].any()
    assert grads[:, half((6, 4))].any()


def test_a_users_own_buffer_stands_next_to_a_mask() -> None:
    module = TwoWeights()
    module.register_buffer("down_mask", torch.ones(3, 6))
    set_mask(module, "down", half((3, 6)))
    assert list(module._buffers) == ["down_mask", "fpe_mask_down"]
    assert bool(module.down_mask.all())
    set_mask(module, "down", None)
    assert type(module) is TwoWeights
    assert list(module._buffers) == ["down_mask"]
