"""The study of interference in the networks of other studies: trained as there, and measured where they are split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fpe_lightning as fpe
from studies import clip_probe, pictures
from studies.clip_probe import Probe
from studies.errors import StudyError
from studies.from_scratch import begin
from studies.interference import Interference
from studies.pictures import CNN, ViT
from studies.pixels import Pixels
from studies.setting import Setting
from studies.study import Study
from studies.task import Task
from studies.training import run_block
from tests.support.arms import ARMS, arms

pytestmark = pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")  # the networks here are tiny

OTHERS: dict[str, tuple[Setting, list[str]]] = {
    "clip_probe": (Probe(hidden=4), ["layers.0"]),
    "pixels": (Pixels(hidden=4, batch_size=512), ["layers.0"]),
    "deep": (Probe(hidden=[6, 4]), ["layers.0", "layers.2"]),
    "cnn": (CNN(hidden=4, channels=[4, 4]), ["head.0"]),
    "cnn and convolutions": (CNN(hidden=4, channels=[4, 4], convolutions=True), ["blocks.1.0", "head.0"]),
    "transformer": (ViT(hidden=[4, 6], width=8), ["blocks.0.ffn.0", "blocks.1.ffn.0"]),
}
"""Settings of other studies, and the layers that compute the neurons they split."""


def drawn(*shape: int) -> Task:
    x = torch.randn(40, *shape, generator=torch.Generator().manual_seed(0))
    y = x.flatten(1)[:, :5].argmax(1)
    return Task((x, y), (x, y), (x, y), classes=5)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, rows = drawn(1, 16, 16), drawn(30)
    monkeypatch.setattr(pictures, "pictures", lambda *_: pixels)
    monkeypatch.setattr(clip_probe, "_embeddings", lambda *_: rows)


def measured(other: Setting, of: str) -> Interference:
    """The study of interference in the networks of a setting of another study."""
    own = {each.name for each in fields(Setting)}
    values = {each.name: getattr(other, each.name) for each in fields(other)}
    data = {name: value for name, value in values.items() if name not in own}
    return Interference(of=of, data=data, **{name: values[name] for name in own})


def by_hand(network: nn.Module, layers: Sequence[str]) -> dict[str, float]:
    """Means over layers, by the definitions."""
    found = []
    for name in layers:
        weight = network.get_parameter(f"{name}.weight").detach().double().numpy()
        columns = np.moveaxis(weight, 1, -1).reshape(-1, weight.shape[1])  # an input of a convolution is a channel
        gram = columns.T @ columns
        capacity = np.diag(gram) ** 2 / (gram**2).sum(1).clip(1e-300)
        rows = weight.reshape(len(weight), -1)
        rows = rows[rows.any(1)]  # a child that kept no weight has no direction
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
        found.append((capacity.mean(), cosines.mean(), np.abs(cosines).mean()))
    return dict(zip(("capacity", "cosine", "absolute_cosine"), map(float, np.mean(found, axis=0)), strict=True))


@pytest.mark.parametrize("kind", OTHERS)
def test_networks_are_those_of_the_other_study(kind: str) -> None:
    other = replace(OTHERS[kind][0], epochs=3, split=1)
    chosen = arms("dense", "random", "shared", "wide_sparse", "dropconnect")
    theirs = run_block(other, chosen, [3])
    ours = run_block(measured(other, kind.split()[0]), chosen, [3])
    for before, after in zip(theirs, ours, strict=True):
        assert (after.status, after.why) == ("done", "")
        assert (after.nonzeros, after.train, after.test) == (before.nonzeros, before.train, before.test)
        assert not before.measures
        assert ("capacity_after" in after.measures) == (after.arm in ("random", "shared"))
        assert "capacity_end" in after.measures


@pytest.mark.parametrize("kind", OTHERS)
def test_measures_are_means_over_the_layers_that_are_split(kind: str) -> None:
    other, layers = OTHERS[kind]
    setting = replace(measured(other, kind.split()[0]), epochs=1, when=0.0)
    task = setting.task(0)
    (row,) = run_block(setting, arms("random"), [0])
    network = begin(ARMS["dense"], setting, task, 0)
    seen = {f"{name}_before": value for name, value in by_hand(network, layers).items()}
    fpe.expand(network, fpe.Paper(), sites=layers, example_inputs=task.train[0][:2])
    after = by_hand(network, layers)
    seen |= {f"{name}_after": value for name, value in after.items()}
    assert {name: row.measures[name] for name in seen} == pytest.approx(seen, abs=1e-6)
    assert set(row.measures) == set(setting.measures)
    second = begin(ARMS["wide_sparse"], setting, task, 1)
    mean = {f"{name}_end": (after[name] + value) / 2 for name, value in by_hand(second, layers).items()}
    assert setting.observe("end", [network, second], task) == pytest.approx(mean, abs=1e-6)  # members of an ensemble


@pytest.mark.parametrize(
    ("values", "arm", "sentence"),
    [
        ({"of": "cnn"}, "interaction_incoming", "it asks for the partition 'residual_interaction'"),
        ({"of": "transformer"}, "clause", "it asks for the partition 'clause'"),
    ],
)
def test_an_arm_that_the_other_study_refuses_gets_its_sentence(values: dict[str, Any], arm: str, sentence: str) -> None:
    with pytest.raises(StudyError, match=f"^Arm '{arm}' cannot be in setting 'S': {sentence}"):
        Study({"S": Interference(**values)}, arms("dense", arm)).check()


def test_sizes_that_do_not_fit_the_data_are_refused_before_anything_runs() -> None:
    setting = Interference(of="transformer", data={"patch": 5})
    with pytest.raises(StudyError, match=r"Setting 'S' cannot be: .* found patch=5 of 16 pixels"):
        Study({"S": setting}, arms("dense")).prepare()
