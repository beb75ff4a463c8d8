"""Recurrent layers, packed sequences and Fourier transforms end a width with a reason, and never a search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fpe_lightning as fpe
from tests.support.nets import Net, proven, reasons

X = torch.randn(3, 5, 16)
LENGTHS = torch.tensor([5, 3, 2])
RECURRENT = "a recurrent layer (LSTM, GRU, RNN) reads or computes it"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell])
def test_recurrent_layers_never_end_a_search(kind: Callable[..., nn.Module], training: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x[:, 0] if isinstance(self.b, nn.RNNCellBase) else x)
        h = self.b(h)
        while not isinstance(h, Tensor):
            h = h[0]
        return self.head(h)

    head = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    net = Net(forward, a=nn.Linear(16, 8), b=kind(8, 6), head=head).train(training)
    found = [site.name for site in proven(net, X)]
    # All but the LSTM are computed by ordinary products on a CPU, which read the width before them.
    assert found == (["head.0"] if kind is nn.LSTM else ["a", "head.0"])


def test_the_reason_of_a_recurrent_layer_names_it() -> None:
    net = Net(lambda self, x: self.c(self.b(self.a(x))[0]), a=nn.Linear(16, 8), b=nn.LSTM(8, 6), c=nn.Linear(6, 2))
    found = reasons(net, X)
    assert found["a"] == found["b.weight_ih_l0"] == RECURRENT


WAYS: list[Callable[[Tensor], Tensor]] = [
    lambda h: torch.fft.rfft(h, dim=1).abs(),
    lambda h: torch.fft.fft(h, dim=1).real,
    lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1), n=5, dim=1),
]


@pytest.mark.parametrize("way", WAYS)
def test_a_width_passes_where_other_axes_are_mixed(way: Callable[[Tensor], Tensor]) -> None:
    net = Net(lambda self, x: self.b(F.relu(way(self.a(x)))), a=nn.Linear(16, 8), b=nn.Linear(8, 3))
    assert [site.name for site in proven(net, X)] == ["a"]


def test_complex_numbers_hold_one_unit_in_both_parts() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(self.a(x).unflatten(-1, (-1, 2)).contiguous())
        return self.b(torch.view_as_real(pairs * 1j).select(-1, 0).relu())

    net = Net(forward, a=nn.Linear(16, 16), b=nn.Linear(8, 3))
    assert [site.name for site in proven(net, X)] == ["a"]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_packed_sequences_end_a_width_and_never_a_run(kind: type[nn.RNNBase]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        packed = self.rnn(pack_padded_sequence(self.a(x), LENGTHS, batch_first=True))[0]
        return self.head(pad_packed_sequence(packed, batch_first=True)[0])

    head = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    net = Net(forward, a=nn.Linear(16, 8), rnn=kind(8, 6, batch_first=True), head=head)
    found = [site.name for site in proven(net, X)]
    assert found[-1] == "head.0"
    assert set(found) <= {"a", "head.0"}


def test_checks_of_values_do_not_end_a_width() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = F.softplus(self.a(x))
        torch.distributions.Gamma(h + 1e-3, h + 1e-3)  # its arguments are checked by `_is_all_true`
        return self.b(h)

    net = Net(forward, a=nn.Linear(16, 8), b=nn.Linear(8, 3))
    assert [site.name for site in fpe.find_sites(net, X)] == ["a"]
