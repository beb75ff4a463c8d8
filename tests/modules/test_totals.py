"""Totals: means over uneven batches, on one process or several."""

from __future__ import annotations

import torch

from fpe_lightning.modules.totals import Totals


def test_batches_count_by_their_rows() -> None:
    totals = Totals()
    totals.add(torch.tensor(1.0), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
    totals.add(torch.tensor(5.0), torch.tensor([1]), torch.tensor([0]))
    loss, accuracy = totals.pop()
    assert (float(loss), float(accuracy)) == (2.0, 0.5)


def test_nothing_is_left_after_a_pop() -> None:
    totals = Totals()
    totals.add(torch.tensor(1.0), torch.tensor([0]), torch.tensor([0]))
    totals.pop()
    assert all(value.isnan() for value in totals.pop())


def test_sums_not_means_are_gathered_over_processes() -> None:
    totals = Totals()
    totals.add(torch.tensor(1.0), torch.tensor([0]), torch.tensor([0]))
    # The other process saw three rows, a loss that sums to 9, and nothing right.
    loss, accuracy = totals.pop(lambda sums: torch.stack([sums, torch.tensor([9.0, 0.0, 3.0])]))
    assert (float(loss), float(accuracy)) == (2.5, 0.25)


def test_losses_hold_no_graph() -> None:
    totals = Totals()
    totals.add(torch.ones((), requires_grad=True) * 2, torch.tensor([0]), torch.tensor([0]))
    assert not totals.pop()[0].requires_grad
