"""Whole batches: each row at most once, equal work on all processes, an order that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from fpe_lightning.data.loader import BatchLoader


def make_loader(rows: int = 22, batch_size: int | None = 4, **kwargs: Any) -> BatchLoader:
    features = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))
    return BatchLoader(features, torch.arange(rows), batch_size, **kwargs)


def rows_of(loader: BatchLoader) -> list[list[int]]:
    return [labels.tolist() for _, labels in loader]


def flat(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def test_features_and_labels_stay_together() -> None:
    loader = make_loader(shuffle=True)
    for features, labels in loader:
        assert torch.equal(features, loader.features[labels])


def test_unshuffled_batches_are_slices_in_order() -> None:
    assert rows_of(make_loader(rows=10)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {}
    for seed in range(3):
        loader = make_loader(shuffle=True, seed=seed)
        for epoch in range(3):
            loader.set_epoch(epoch)
            torch.manual_seed(epoch)
            orders[seed, epoch] = flat(rows_of(loader))
            assert flat(rows_of(loader)) == orders[seed, epoch]
    assert len({tuple(order) for order in orders.values()}) == 9
    assert all(sorted(order) == list(range(22)) for order in orders.values())


def test_iterating_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    rows_of(make_loader(shuffle=True))
    assert torch.equal(before, torch.get_rng_state())


sizes = {"rows": st.integers(1, 60), "batch_size": st.integers(1, 9), "num_replicas": st.integers(1, 5)}


@given(**sizes, shuffle=st.booleans(), epoch=st.integers(0, 3))
def test_every_row_goes_to_exactly_one_process(
    rows: int, batch_size: int, num_replicas: int, shuffle: bool, epoch: int
) -> None:
    if rows < num_replicas:
        return
    loaders = [
        make_loader(rows, batch_size, shuffle=shuffle, num_replicas=num_replicas, rank=r) for r in range(num_replicas)
    ]
    for loader in loaders:
        loader.set_epoch(epoch)
    parts = [rows_of(loader) for loader in loaders]
    assert sorted(flat(map(flat, parts))) == list(range(rows))
    assert {len(part) for part in parts} == {len(loaders[0])}
    for step in zip(*parts, strict=True):
        lengths = [len(batch) for batch in step]
        assert min(lengths) >= 1
        assert max(lengths) - min(lengths) <= 1
        # only the rows of a step with fewer rows than processes may join another step
        assert max(lengths) <= batch_size + 1


@given(**sizes)
def test_drop_last_gives_full_batches_only(rows: int, batch_size: int, num_replicas: int) -> None:
    if rows < batch_size * num_replicas:
        return
    parts = [
        rows_of(make_loader(rows, batch_size, shuffle=True, drop_last=True, num_replicas=num_replicas, rank=r))
        for r in range(num_replicas)
    ]
    assert {len(batch) for part in parts for batch in part} == {batch_size}
    assert {len(part) for part in parts} == {rows // (batch_size * num_replicas)}
    seen = flat(map(flat, parts))
    assert len(set(seen)) == len(seen)


def test_processes_together_take_the_steps_of_one_process_with_a_larger_batch() -> None:
    parts = [rows_of(make_loader(40, 4, shuffle=True, num_replicas=2, rank=r)) for r in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == rows_of(make_loader(40, 8, shuffle=True))


def test_batch_size_none_takes_all_rows_in_one_step() -> None:
    assert rows_of(make_loader(7, None)) == [list(range(7))]
    assert [rows_of(make_loader(7, None, num_replicas=2, rank=r)) for r in (0, 1)] == [[[0, 1, 2]], [[3, 4, 5, 6]]]


def test_transform_is_applied_to_the_features_of_a_batch() -> None:
    loader = BatchLoader(torch.ones(4, 2, dtype=torch.float16), torch.zeros(4), 2, transform=torch.Tensor.float)
    assert {features.dtype for features, _ in loader} == {torch.float32}
    assert loader.features.dtype == torch.float16


def test_a_memory_map_is_read_and_not_copied(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", np.arange(20, dtype=np.float16).reshape(10, 2))
    mapped = np.load(tmp_path / "features.npy", mmap_mode="c")
    loader = BatchLoader(mapped, np.arange(10), 3, shuffle=True)
    assert loader.features.data_ptr() == mapped.ctypes.data
    for features, labels in loader:
        assert torch.equal(features[:, 0], 2.0 * labels.half())


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_has_to_be_positive(batch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"`batch_size` has to be at least 1 .* found {batch_size}\."):
        make_loader(batch_size=batch_size)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rows": 0}, r"cannot share 0 rows"),
        ({"rows": 2, "num_replicas": 3}, r"3 process\(es\) cannot share 2 rows"),
        ({"rank": 2, "num_replicas": 2}, r"`rank` has to be in 0 .. num_replicas - 1, found 2 of 2"),
        ({"rows": 3, "drop_last": True}, r"leaves no batch: 3 rows are fewer than one step .* `batch_size=4`"),
        ({"seed": -1, "shuffle": True}, r"`seed` has to be zero or positive, found -1"),
    ],
)
def test_impossible_requests_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loader(**kwargs)


def test_each_row_needs_a_label() -> None:
    with pytest.raises(ValueError, match=r"found 3 rows of features and 2 labels"):
        BatchLoader(torch.zeros(3, 2), torch.zeros(2))


def test_a_loaded_position_is_used_once_and_only_in_its_epoch() -> None:
    loader = make_loader(shuffle=True)
    loader.set_epoch(2)
    full = rows_of(loader)
    batches = iter(loader)
    next(batches)
    next(batches)
    state = loader.state_dict()

    resumed = make_loader(shuffle=True)
    resumed.load_state_dict(state)
    iter(resumed)  # an iterator that nobody reads consumes nothing
    assert resumed.state_dict() == state
    assert rows_of(resumed) == full[2:]
    assert rows_of(resumed) == full

    resumed.load_state_dict(state)
    resumed.set_epoch(3)
    assert sorted(flat(rows_of(resumed))) == list(range(22))


def test_position_is_zero_once_the_next_epoch_is_set() -> None:
    loader = make_loader()
    rows_of(loader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (0, 6)
    loader.set_epoch(1)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (1, 0)


def test_a_position_inside_a_differently_divided_epoch_is_refused() -> None:
    loader = make_loader(shuffle=True)
    next(iter(loader))
    with pytest.raises(ValueError, match=r"after batch 1 of 6 .* with batch_size=4 \(now 8\); restore these settings"):
        make_loader(batch_size=8, shuffle=True).load_state_dict(loader.state_dict())
    rows_of(loader)
    make_loader(batch_size=8, shuffle=True).load_state_dict(loader.state_dict())  # at the end of an epoch all is well


def test_a_foreign_state_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not the state of a BatchLoader: it has no \['batch'"):
        make_loader().load_state_dict({"epoch": 1})


class Recorder(L.LightningModule):
    """A linear model that writes down the rows of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        nn.init.ones_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.seen: list[tuple[int, int, list[int]]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        features, labels = batch
        self.seen.append((self.current_epoch, batch_idx, labels.tolist()))
        return (self.layer(features).squeeze(1) - labels).square().mean()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val", self.layer(batch[0]).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fit(ckpt_path: str | None = None, callbacks: list[L.Callback] | None = None, **kwargs: Any) -> Recorder:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(**quiet, callbacks=callbacks, enable_checkpointing=bool(callbacks), **kwargs)
    model = Recorder()
    trainer.fit(model, make_loader(shuffle=True), make_loader(), ckpt_path=ckpt_path)
    return model


def test_lightning_sets_the_epoch(tmp_path: Path) -> None:
    model = fit(max_epochs=2, default_root_dir=tmp_path)
    loader = make_loader(shuffle=True)
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        assert [rows for at, _, rows in model.seen if at == epoch] == rows_of(loader)


@pytest.mark.parametrize("limits", [{"max_epochs": 2}, {"max_steps": 12, "max_epochs": -1}], ids=["epochs", "steps"])
def test_a_resumed_run_sees_exactly_the_remaining_batches(tmp_path: Path, limits: dict[str, int]) -> None:
    every_step = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    full = fit(callbacks=[every_step], **limits)
    for step in (1, 5, 6, 8, 12):
        resumed = fit(ckpt_path=str(tmp_path / f"step={step}.ckpt"), **limits)
        assert resumed.seen == full.seen[step:]
        assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), full.parameters(), strict=True))
