"""Measures are functions of the package; metrics are classes of the room, imported when one is asked for."""

from __future__ import annotations

import pytest

import fpe_lightning as fpe
from fpe_lightning import interference
from fpe_lightning.interference import metrics


def test_the_measures_of_the_paper_are_names_of_the_package() -> None:
    assert fpe.feature_capacity is interference.feature_capacity
    assert fpe.mean_cosine_similarity is interference.mean_cosine_similarity


@pytest.mark.parametrize("name", ["FeatureCapacity", "MeanCosineSimilarity", "ClauseCollisions", "ClauseCoverage"])
def test_metrics_are_names_of_the_room(name: str) -> None:
    assert getattr(interference, name) is getattr(metrics, name)


def test_other_names_are_unknown() -> None:
    for name in ("FeatureCapacities", "torch", "_Share"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(interference, name)
