"""Which widths are refused, and that the reason is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpe_lightning.sites import find_sites
from tests.support.nets import Net, proven, reasons

OUTPUT = "it reaches an output of the model"
INPUT = "it meets an axis that no weight computes (an input or a constant)"


def test_output_width() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    assert reasons(model, torch.randn(2, 8)) == {"2": OUTPUT}


def test_hidden_width_that_is_returned_too() -> None:
    class Result:
        def __init__(self, hidden: Tensor) -> None:
            self.nested = {"hidden": [hidden]}

    def forward(self: Any, x: Tensor) -> tuple[Tensor, Result]:
        hidden = F.relu(self.up(x))
        return self.down(hidden), Result(hidden)

    model = Net(forward, up=nn.Linear(8, 6), down=nn.Linear(6, 3))
    assert reasons(model, torch.randn(2, 8)) == {"up": OUTPUT, "down": OUTPUT}


def test_width_that_is_added_to_the_input() -> None:
    model = Net(lambda self, x: self.head(x + self.same(x)), same=nn.Linear(8, 8), head=nn.Linear(8, 3))
    assert (
        reasons(model, torch.randn(2, 8))["same"] == "it meets an axis that no weight computes (an input or a constant)"
    )


def test_tied_embedding_and_head() -> None:
    model = Net(lambda self, t: self.head(self.embed(t)), embed=nn.Embedding(11, 6), head=nn.Linear(6, 11, bias=False))
    model.head.weight = model.embed.weight
    found = reasons(model, torch.randint(0, 11, (2, 4)))
    assert found == {"embed": "tied weights: embed.weight and head.weight are one tensor"}


def test_tied_layers() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[2].weight = model[0].weight
    assert reasons(model, torch.randn(2, 8))["0"] == "tied weights: 0.weight and 2.weight are one tensor"


def test_weight_that_is_used_in_both_directions() -> None:
    parts = {"embed": nn.Linear(3, 8), "code": nn.Linear(8, 5), "head": nn.Linear(8, 2)}
    model = Net(lambda self, x: self.head(F.relu(self.code(self.embed(x)) @ self.code.weight)), **parts)
    assert reasons(model, torch.randn(2, 3))["code"] == "tied weights: the same entries compute units and read units"


def test_embedding() -> None:
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 3))
    assert (
        reasons(model, torch.randint(0, 11, (2, 4)))["0"] == "an embedding computes it, whose inputs are a vocabulary"
    )


def test_attention_heads() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Linear(8, 8), nn.Linear(8, 3)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.embed(x)
            return self.out(self.attention(y, y, y, need_weights=self.training)[0])

    found = reasons(Attention(), torch.randn(2, 5, 8))
    assert found["attention.in_proj_weight"].startswith(("attention head structure", "contraction of two activations"))
    assert "embed" in found


def test_fused_attention_layers_keep_their_feed_forward_width() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    sites = proven(model, torch.randn(2, 5, 8))
    assert [(site.name, site.width) for site in sites] == [("layers.0.linear1", 16), ("layers.1.linear1", 16)]
    assert reasons(model, torch.randn(2, 5, 8))["layers.0.self_attn.in_proj_weight"].startswith(
        "attention head structure"
    )


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (nn.Softmax(-1), "softmax over the axis"),
        (Net(lambda _, x: F.normalize(x)), "linalg_vector_norm over the axis"),
        (Net(lambda _, x: x.cumsum(-1)), "cumsum over the axis"),
        (Net(lambda _, x: x.flip(-1)), "flip reorders the axis"),
        (Net(lambda _, x: F.pad(x, (0, 0))[:, torch.arange(6)]), "indexing picks entries of the axis"),
        (Net(lambda _, x: torch.fft.fft(x).real), "a Fourier transform runs over the axis"),
        (Net(lambda _, x: x.sort(-1).values), "sort over the axis"),
        (Net(lambda _, x: x + torch.arange(6)), INPUT),
        (Net(lambda _, x: x * x.select(1, 0).unsqueeze(1)), "a single entry is selected from it"),
    ],
)
def test_operators_that_copies_would_change(between: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Linear(8, 6), between, nn.Linear(6, 3))
    assert reasons(model, torch.randn(2, 8))["0"] == reason


def test_depthwise_over_the_input() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.Conv2d(6, 4, 1))
    assert reasons(model, torch.randn(2, 3, 8, 6))["0"].startswith("depthwise only")


def test_computed_weights() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 3))
    found = reasons(model, torch.randn(2, 8))
    assert found["0.parametrizations.weight.original1"] == "unknown operator _weight_norm_interface"


def test_bilinear_and_recurrent_layers() -> None:
    bilinear = Net(lambda self, x: self.b(self.a(x), self.a(x)), a=nn.Linear(8, 5), b=nn.Bilinear(5, 5, 4))
    assert reasons(bilinear, torch.randn(2, 8))["a"] == "unknown operator _trilinear"
    recurrent = Net(lambda self, x: self.b(self.a(x))[0], a=nn.Linear(8, 5), b=nn.LSTM(5, 6, batch_first=True))
    assert find_sites(recurrent, torch.randn(2, 4, 8)) == []


def test_size_written_in_the_forward() -> None:
    model = Net(lambda self, x: self.b(F.relu(self.a(x)).view(-1, 12)), a=nn.Linear(8, 12), b=nn.Linear(12, 3))
    assert reasons(model, torch.randn(2, 8))["a"].startswith("hard-coded size in forward: the widened model raises")


def test_size_read_from_another_width() -> None:
    """Widened alike the two would pass, so neighbours are widened by different factors."""

    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        return self.d(b.reshape(b.shape[0], a.shape[1])) + self.c(a)

    parts = {"a": nn.Linear(8, 6), "b": nn.Linear(8, 6), "c": nn.Linear(6, 3), "d": nn.Linear(6, 3)}
    found = reasons(Net(forward, **parts), torch.randn(2, 8))
    assert found["a"].startswith("hard-coded size")
    assert found["b"].startswith("hard-coded size")


def test_sites_that_fit_alone_but_not_together() -> None:
    """Each of two widths may grow, but the forward allows no more than 28 units in both."""

    def forward(self: Any, x: Tensor) -> Tensor:
        first, second = F.relu(self.a(x)), F.relu(self.b(x))
        if first.shape[1] + second.shape[1] > 28:
            raise RuntimeError("too wide")
        return self.c(first) + self.d(second)

    model = Net(forward, a=nn.Linear(16, 8), b=nn.Linear(16, 8), c=nn.Linear(8, 3), d=nn.Linear(8, 3))
    assert [site.name for site in find_sites(model, torch.randn(2, 16))] == ["a"]
    assert reasons(model, torch.randn(2, 16))["b"] == "it cannot be widened together with the sites before it"


def test_projection_that_is_a_buffer() -> None:
    model = Net(lambda self, x: self.head(F.relu(x @ self.projection)), head=nn.Linear(6, 3))
    model.register_buffer("projection", torch.randn(8, 6))
    assert reasons(model, torch.randn(2, 8))["projection"] == "projection is a buffer, not a parameter"


def test_mode_that_cannot_be_traced_is_said() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("targets are missing")
        return self.b(F.relu(self.a(x)))

    model = Net(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 3))
    assert [site.name for site in proven(model, torch.randn(2, 8))] == ["a"]
    assert reasons(model, torch.randn(2, 8))[""] == (
        "not traced in training mode, where the forward raises ValueError: targets are missing"
    )


@pytest.mark.parametrize(("groups", "found"), [(8, False), (4, True), (2, True)])
def test_copies_must_stay_in_the_group_of_their_original(groups: int, found: bool) -> None:
    """Behind a shuffle copies come in pairs, which fit into groups of two channels but not of one."""
    layers = [nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.GroupNorm(groups, 8), nn.Conv2d(8, 2, 1)]
    model, example = nn.Sequential(*layers), torch.randn(2, 3, 8, 6)
    assert bool(proven(model, example)) is found
    if not found:
        assert reasons(model, example)["0"].startswith("copies would leave the group")
