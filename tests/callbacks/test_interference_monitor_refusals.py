"""InterferenceMonitor: what it refuses, and in which words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from interference_support import Tiny, fit
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from fpe_lightning.callbacks import InterferenceMonitor


def test_a_name_that_matches_nothing_is_refused_with_the_names_there_are():
    message = (
        r"`sites` of `InterferenceMonitor` asks for 'encoder.\*', which matches no layer with a weight; the model has "
        r"'net.0', 'net.2', 'net.4'."
    )
    with pytest.raises(MisconfigurationException, match=message):
        fit([InterferenceMonitor(sites=["net.0", "encoder.*"])], logger=False)


def test_long_lists_of_names_are_cut_and_empty_ones_said():
    deep = nn.Sequential(*[nn.Linear(16, 16) for _ in range(15)], nn.Linear(16, 2))
    with pytest.raises(MisconfigurationException, match=r"'net.11' and 4 more\.$"):
        fit([InterferenceMonitor(sites="x")], Tiny(deep), logger=False)
    with pytest.raises(MisconfigurationException, match=r"the model has none\.$"):
        fit([InterferenceMonitor(sites="x")], Tiny(nn.Sequential(nn.BatchNorm1d(16))), logger=False)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_refuses_a_wrong_interval(value: Any):
    with pytest.raises(MisconfigurationException, match=f"whole number of at least 1, but found {value!r}"):
        InterferenceMonitor(every_n_epochs=value)


@pytest.mark.parametrize("value", [[], 3, ["net.0", 1], {"net.0": 2}])
def test_refuses_wrong_sites(value: Any):
    with pytest.raises(MisconfigurationException, match="`sites` must be None, a name or glob, or a non-empty list"):
        InterferenceMonitor(sites=value)


def test_refuses_wrong_figures():
    with pytest.raises(MisconfigurationException, match="`figures` must be True or False, but found 'yes'"):
        InterferenceMonitor(figures="yes")  # type: ignore[arg-type]


def test_refuses_strategies_that_cut_weights_up():
    trainer: Any = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(MisconfigurationException, match="needs whole weights, but found FSDPStrategy"):
        InterferenceMonitor().setup(trainer, Tiny(), "fit")
