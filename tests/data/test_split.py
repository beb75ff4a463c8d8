"""The stratified choice takes the asked number of samples and keeps the shares of the classes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fpe_lightning.data.split import stratified_choice


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=60), part=st.floats(0, 1), seed=st.integers(0, 9))
def test_each_class_gives_its_share_to_within_one_sample(labels: list[int], part: float, seed: int) -> None:
    all_labels = torch.tensor(labels)
    size = max(1, int(part * len(labels)))
    chosen = stratified_choice(all_labels, size, seed)
    assert len(chosen) == size == len(chosen.unique())
    assert torch.equal(chosen, chosen.sort().values)
    shares = all_labels.bincount() * size / len(labels)
    taken = all_labels[chosen].bincount(minlength=len(shares))
    assert ((taken - shares).abs() < 1).all()


def test_choice_depends_on_the_seed_alone() -> None:
    labels = torch.arange(100) % 10
    torch.manual_seed(1)
    first = stratified_choice(labels, 30, seed=3)
    torch.manual_seed(2)
    assert torch.equal(first, stratified_choice(labels, 30, seed=3))
    assert not torch.equal(first, stratified_choice(labels, 30, seed=4))


@pytest.mark.parametrize("size", [0, 4])
def test_sizes_that_are_not_there_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"Cannot choose {size} of 3 samples"):
        stratified_choice(torch.zeros(3, dtype=torch.int64), size)
