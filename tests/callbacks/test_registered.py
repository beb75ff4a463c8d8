"""Partitions and pruning rules from outside of the package go by their names through all that takes an expansion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from boring import Plain, equal, network, outcome, resumable, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Generator, Tensor

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.partitions import register_partition
from fpe_lightning.pruning import SiteWeights, register_pruning
from fpe_lightning.sparse import check_masks, mask_of

X = torch.zeros(2, 48)


def strided(weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
    """Every ``alpha``-th input goes to the same child."""
    return (torch.arange(alive.shape[1]) % alpha).expand(alive.shape).clone()


class LastIncoming:
    """The last incoming weights go, whatever they are."""

    def keep(self, weights: SiteWeights, excess: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        (mask,) = weights.incoming_masks
        kept = mask.clone().flatten()
        kept[kept.nonzero().squeeze(1)[len(kept.nonzero()) - excess :]] = False
        return [kept.view(mask.shape)], weights.outgoing_masks


register_partition("test_strided", strided)
register_pruning("test_last", LastIncoming())

BY_NAME = fpe.Expansion(partition="test_strided", prune="test_last")  # type: ignore[arg-type]
AS_OBJECTS = fpe.Expansion(partition=strided, prune=LastIncoming())


def test_expand_takes_the_names() -> None:
    one, other = network(), network()
    report = fpe.expand(one, BY_NAME, example_inputs=X)
    assert fpe.expand(other, AS_OBJECTS, example_inputs=X) == report
    assert equal(dict(one.state_dict()), dict(other.state_dict()))
    mask = mask_of(one[0])
    assert mask is not None
    assert mask[0].nonzero().squeeze(1).tolist() == list(range(0, 48, 2))
    assert mask[1].nonzero().squeeze(1).tolist() == list(range(1, 48, 2))
    assert (report.sites[0].removed_incoming, report.sites[0].removed_outgoing) == (6 + 12 + 18, 0)
    assert int(mask[-1].sum()) == 0, "the last child pays first"
    assert report.nonzeros_before == report.nonzeros_after == fpe.count_nonzeros(one)


def test_a_checkpoint_is_loaded_and_widened(tmp_path: Path) -> None:
    wide, fresh = network(), network(seed=1)
    torch.save(wide.state_dict(), tmp_path / "narrow.ckpt")
    fpe.expand(wide, BY_NAME, example_inputs=X)
    torch.save(wide.state_dict(), tmp_path / "wide.ckpt")
    fpe.load_expanded_state_dict(fresh, torch.load(tmp_path / "wide.ckpt", weights_only=True))
    assert equal(dict(fresh.state_dict()), dict(wide.state_dict()))
    fpe.expand_checkpoint(tmp_path / "narrow.ckpt", tmp_path / "widened.ckpt", network(), BY_NAME, example_inputs=X)
    assert equal(torch.load(tmp_path / "widened.ckpt", weights_only=True), dict(wide.state_dict()))


MADE: dict[str, Callable[[], Any]] = {
    "names": lambda: BY_NAME,
    "objects": lambda: fpe.Expansion(partition=strided, prune=LastIncoming()),
    "mapping": lambda: {"net.*": fpe.Expansion(partition=strided, prune=LastIncoming())},
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_the_callback_splits_by_them_and_resumes(make: Callable[[], Any], tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=2)
    run = trainer(ExpansionCallback(make(), step=[3, 5]), saving, directory=tmp_path, max_epochs=2)
    run.fit(Plain(), resumable())
    check_masks(run.lightning_module)
    assert run.lightning_module.net[0].out_features == 24
    for step in (2, 4, 6):
        # Objects are made again and have other addresses, as in another process.
        resumed = trainer(ExpansionCallback(make(), step=[3, 5]), max_epochs=2)
        resumed.fit(Plain(), resumable(), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert equal(outcome(resumed), outcome(run)), f"resumed after step {step}"


def test_no_address_of_an_object_is_part_of_the_callbacks_name_in_checkpoints() -> None:
    keys = {ExpansionCallback(fpe.Expansion(prune=LastIncoming()), step=3).state_key for _ in range(20)}
    rules = [fpe.pruning.DiscriminantRefit(), LastIncoming()]
    assert len(keys) == 1
    for each in (strided, *rules):
        field = "partition" if each is strided else "prune"
        assert " at 0x" not in ExpansionCallback(fpe.Expansion(**{field: each}), step=3).state_key
    different = {ExpansionCallback(fpe.Paper(alpha=alpha), step=3).state_key for alpha in (2, 3)}
    assert len(different) == 2
