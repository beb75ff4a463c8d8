"""Every site of a random convolutional or linear stack is proven by duplication."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.nets import proven

CHANNELS = st.sampled_from([4, 6, 8, 9])
# No ReLU: where all of a few units are off, no comparison has power.
ACTIVATIONS = st.sampled_from([nn.LeakyReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.Identity])


@st.composite
def conv_layers(draw: st.DrawFn, inputs: int) -> tuple[list[nn.Module], int]:
    """A convolution (dense, grouped, depthwise or transposed), a norm, an activation and something between."""
    outputs = draw(CHANNELS)
    kind = draw(st.sampled_from(["dense", "grouped", "depthwise", "transposed"]))
    if kind == "depthwise":
        outputs = inputs * draw(st.sampled_from([1, 2]))
    even = inputs % 2 == outputs % 2 == 0
    groups = inputs if kind == "depthwise" else 2 if kind == "grouped" and even else 1
    conv = nn.ConvTranspose2d if kind == "transposed" else nn.Conv2d
    halves = [nn.GroupNorm(2, outputs), nn.ChannelShuffle(2)] if outputs % 2 == 0 else [nn.Identity(), nn.Identity()]
    norms = [nn.BatchNorm2d(outputs), halves[0], nn.InstanceNorm2d(outputs, affine=True), nn.Identity()]
    between = [nn.Identity(), nn.Dropout2d(), nn.MaxPool2d(2, 1), halves[1], nn.PReLU(outputs)]
    layers = [conv(inputs, outputs, 3, padding=1, groups=groups, bias=draw(st.booleans()))]
    return [*layers, draw(st.sampled_from(norms)), draw(ACTIVATIONS)(), draw(st.sampled_from(between))], outputs


@st.composite
def stacks(draw: st.DrawFn) -> nn.Module:
    """Some convolutional layers, a flattening (or a pooling to one pixel), and some linear layers."""
    layers: list[nn.Module] = []
    width = 3
    for _ in range(draw(st.integers(0, 3))):
        more, width = draw(conv_layers(width))
        layers += more
    layers += [nn.AdaptiveAvgPool2d(draw(st.sampled_from([1, (2, 3)]))), nn.Flatten()]
    width = width * 6 if layers[-2].output_size != 1 else width
    for _ in range(draw(st.integers(0, 3))):
        outputs = draw(CHANNELS)
        norms = [nn.BatchNorm1d(outputs), nn.LayerNorm(outputs), nn.RMSNorm(outputs), nn.Identity()]
        layers += [
            nn.Linear(width, outputs, bias=draw(st.booleans())),
            draw(st.sampled_from(norms)),
            draw(ACTIVATIONS)(),
        ]
        width = outputs
    return nn.Sequential(*layers, nn.Linear(width, 3))


@given(stacks())
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_every_site_of_a_random_stack_is_proven(model: nn.Module) -> None:
    example = torch.randn(4, 3, 7, 6, generator=torch.Generator().manual_seed(0))
    assert all(site.kind == "hidden" for site in proven(model, example))
