"""Groups of neurons share a partition: balanced, deterministic, and one of its own after an earlier split."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from fpe_lightning.partitions import Contiguous, Partition, Shared, SharedPartition, resolve_partition
from fpe_lightning.partitions.partition import children_masks
from fpe_lightning.partitions.shared import group_size


def masks_of(partition: str | Partition, alive: Tensor, alpha: int, seed: int = 0) -> Tensor:
    weight = torch.randn(*alive.shape, 1)
    return children_masks(resolve_partition(partition), weight, alive, alpha, Generator().manual_seed(seed))


@settings(deadline=None)
@given(
    kind=st.sampled_from([Shared, Contiguous]),
    groups=st.sampled_from([1, 2, 3, 6]),
    inputs=st.integers(8, 33),
    alpha=st.integers(2, 4),
)
def test_every_child_of_every_group_gets_its_share(
    kind: type[SharedPartition], groups: int, inputs: int, alpha: int
) -> None:
    masks = masks_of(kind(groups=groups), torch.ones(6, inputs, dtype=torch.bool), alpha)
    assert bool((masks.sum(1) == 1).all())
    fan_in = masks.sum(2)
    assert int(fan_in.max()) - int(fan_in.min()) <= 1
    assert group_size(masks) % (6 // groups) == 0
    assert bool((masks.view(groups, 6 // groups, -1).diff(dim=1) == 0).all())


def test_contiguous_children_read_neighbours_and_groups_cut_elsewhere() -> None:
    child = Contiguous(groups=2)(torch.zeros(2, 12, 1), torch.ones(2, 12, dtype=torch.bool), 3, Generator())
    assert child.tolist() == [[0] * 4 + [1] * 4 + [2] * 4, [1] * 2 + [2] * 4 + [0] * 4 + [1] * 2]


def test_groups_draw_different_partitions_and_one_group_is_the_shared_rule() -> None:
    alive = torch.ones(8, 32, dtype=torch.bool)
    assert group_size(masks_of(Shared(groups=4), alive, 2)) == 2
    assert torch.equal(masks_of(Shared(groups=1), alive, 2), masks_of("shared", alive, 2))
    assert torch.equal(masks_of(Contiguous(groups=1), alive, 2), masks_of("contiguous", alive, 2))
    assert not torch.equal(masks_of(Shared(groups=4), alive, 2, seed=1), masks_of(Shared(groups=4), alive, 2, seed=2))


@pytest.mark.parametrize("partition", [Shared(groups=1), Contiguous(groups=1)], ids=str)
def test_after_an_earlier_split_each_stretch_of_neurons_assigns_what_it_reads(partition: Partition) -> None:
    alive = torch.zeros(8, 16, dtype=torch.bool)
    alive[:4, :8] = True
    alive[4:, 8:] = True
    masks = masks_of(partition, alive, 2)
    assert torch.equal(masks.sum(2), torch.full((8, 2), 4))
    assert group_size(masks) == 4


@pytest.mark.parametrize("partition", [Shared(groups=2), Contiguous(groups=2)], ids=str)
def test_single_missing_inputs_do_not_break_a_group(partition: Partition) -> None:
    alive = torch.rand(8, 64, generator=Generator().manual_seed(0)) < 0.9
    masks = masks_of(partition, alive, 2)
    assert group_size(masks) == 4
    assert torch.equal(masks.any(1), alive)


def test_bad_groups_are_named() -> None:
    alive = torch.ones(6, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match="4 groups of one size cannot be made of 6 neurons; use one of 1, 2, 3, 6"):
        masks_of(Shared(groups=4), alive, 2)
    for make in (Shared, Contiguous):
        for groups in (0, True, 2.0):
            with pytest.raises(ValueError, match=f"`groups`, .* has to be an integer of at least 1, found {groups}"):
                make(groups=groups)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Unknown partition 'shared:4'\. Did you mean 'shared'"):
        resolve_partition("shared:4")
