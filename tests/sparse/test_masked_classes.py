"""Classes, names and messages of masked modules."""

from __future__ import annotations

import pytest
import torch
from odd_modules import Scaled, TwoWeights, half, masked_net
from torch import nn

from fpe_lightning.sparse import check_masks, mask_of, masked_parameters, set_mask
from fpe_lightning.sparse.masked import MaskedConv2d, MaskedLinear, MaskedModule


def test_known_classes_stay_instances_of_their_base() -> None:
    conv, linear, odd = nn.Conv2d(2, 4, 3), nn.Linear(4, 2), Scaled(4, 2)
    for module in (conv, linear, odd):
        set_mask(module, "weight", torch.ones_like(module.weight, dtype=torch.bool))
    assert type(conv) is MaskedConv2d
    assert type(linear) is MaskedLinear
    assert isinstance(odd, Scaled)
    assert isinstance(odd, MaskedModule)
    assert type(odd).__name__ == "MaskedScaled"


@pytest.mark.parametrize(("conv", "size"), [(nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3)])
def test_convolutions_keep_their_padding_stride_and_groups(conv: type[nn.Conv2d], size: int) -> None:
    torch.manual_seed(0)
    layer = conv(4, 4, 3, stride=2, padding=1, groups=2, padding_mode="circular")
    x = torch.randn(2, 4, *[6] * size)
    mask = half(layer.weight.shape)
    with torch.no_grad():
        layer.weight.mul_(mask)
    expected = layer(x)
    set_mask(layer, "weight", mask)
    assert torch.equal(layer(x), expected)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad[~mask].any()
    assert layer.weight.grad[mask].any()


def test_taking_the_mask_away_gives_the_class_back() -> None:
    for module, names in ((nn.Linear(4, 6), ["weight"]), (TwoWeights(), ["up", "down"])):
        before = type(module)
        for name in names:
            set_mask(module, name, half(getattr(module, name).shape))
        assert type(module) is not before
        for name in names:
            set_mask(module, name, None)
        assert type(module) is before
        assert not list(module.buffers())


def test_one_of_two_masks_can_go() -> None:
    module = TwoWeights()
    set_mask(module, "up", half((6, 4)))
    set_mask(module, "down", half((3, 6)))
    set_mask(module, "up", None)
    assert [name for name, _, _ in masked_parameters(module)] == ["down"]


def test_a_users_own_buffer_of_that_name_is_no_mask() -> None:
    layer = nn.Linear(4, 6)
    layer.register_buffer("weight_mask", torch.zeros(6, 4, dtype=torch.bool))
    assert mask_of(layer) is None
    assert list(masked_parameters(layer)) == []


def test_the_forward_of_an_odd_module_may_raise_and_leaves_its_parameters() -> None:
    module = TwoWeights()
    set_mask(module, "up", half((6, 4)))
    with pytest.raises(RuntimeError, match="shapes"):
        module(torch.randn(5, 3))
    assert isinstance(module.up, nn.Parameter)
    assert [name for name, _ in module.named_parameters()] == ["up", "down"]


def test_half_precision_and_device_moves_leave_masks_bool() -> None:
    net = masked_net().half()
    assert all(mask.dtype == torch.bool for _, _, mask in masked_parameters(net))


def test_set_mask_names_what_does_not_fit() -> None:
    layer = nn.Linear(4, 6, bias=False)
    for name in ("kernel", "bias"):
        with pytest.raises(ValueError, match=f"parameter `{name}`, but Linear owns no such parameter"):
            set_mask(layer, name, half((6, 4)))
    with pytest.raises(ValueError, match=r"bool tensor of shape \(6, 4\), found torch.bool of shape \(4, 6\)"):
        set_mask(layer, "weight", half((4, 6)))
    with pytest.raises(ValueError, match=r"bool tensor of shape \(6, 4\), found torch.float32 of shape \(6, 4\)"):
        set_mask(layer, "weight", torch.ones(6, 4))
    assert type(layer) is nn.Linear


def test_check_masks_names_the_parameter_and_counts_what_grew() -> None:
    net = masked_net()
    mask = mask_of(net[2])
    assert mask is not None
    with torch.no_grad():
        net[2].weight.add_(1)
    with pytest.raises(RuntimeError, match=rf"{int((~mask).sum())} masked entries of `2.weight` are not zero"):
        check_masks(net)
