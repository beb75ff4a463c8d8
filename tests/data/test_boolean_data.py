"""The Boolean task as batches: full batch by default, targets for one logit or two."""

from __future__ import annotations

import pytest
import torch

from fpe_lightning.data.boolean import dnf_task
from fpe_lightning.data.boolean_data import BooleanDataModule


def test_defaults_are_the_regime_nearest_to_the_paper() -> None:
    data = BooleanDataModule()
    assert (data.num_features, data.num_classes, data.num_outputs) == (24, 2, 1)
    assert [len(group) for group in data.clauses] == [3] * 8
    data.setup()
    sizes = [
        [(tuple(x.shape), tuple(y.shape)) for x, y in loader]
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    ]
    assert sizes == [[((rows, 24), (rows,))] for rows in (2048, 2048, 4096)]


def test_targets_fit_one_logit_or_two() -> None:
    truth = dnf_task(seed=3).test[1]
    for target, expected in (("float", truth.float()), ("class", truth.long())):
        data = BooleanDataModule(target=target, seed=3)  # type: ignore[arg-type]
        data.setup()
        (_, labels), *_ = data.test_dataloader()
        assert torch.equal(labels, expected)
        assert data.num_outputs == (1 if target == "float" else 2)


def test_groups_are_those_of_the_samples() -> None:
    data = BooleanDataModule(seed=7)
    data.setup()
    (inputs, targets), *_ = data.test_dataloader()
    satisfied = torch.stack([(inputs[:, group] > 0).all(dim=1) for group in data.clauses]).any(dim=0)
    assert torch.equal(satisfied, targets > 0)


def test_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`target` has to be 'float' or 'class', found 'int'"):
        BooleanDataModule(target="int")  # type: ignore[arg-type]
