"""The report of the study of rewiring."""

from __future__ import annotations

import pytest

from studies.arms import Arm, Dense, Gradual, WideSparse
from studies.cost import MEASURES
from studies.results import Row
from studies.rewiring_report import findings
from studies.runs import Runs

ARMS: dict[str, Arm] = {"dense": Dense(), "rigl": WideSparse(), "gradual": Gradual()}


def runs(measured: bool = True) -> Runs:
    rows = []
    for factor, arm in enumerate(ARMS, 1):
        for seed in range(2):
            measures = dict.fromkeys(MEASURES, 10.0 * factor) if measured else {}
            accuracy = 0.5 + 0.1 * factor + 0.01 * seed * factor
            rows.append(Row(arm, seed, "done", "", 9, 1, accuracy, accuracy, 1, "A", measures=measures))
    return Runs(rows, ARMS)


def test_accuracies_differences_to_rigl_and_costs() -> None:
    found = findings(runs())
    accuracy, compared, cost = found.tables
    assert accuracy.lines[1] == ("rigl", "71.0 ± 1.0")
    assert [line[0] for line in compared.lines] == ["dense", "gradual*"]
    assert compared.lines[0][1].startswith("-10.5 [")
    assert cost.lines[2] == ("gradual*", *["3.00"] * len(MEASURES))
    assert set(found.figures) == set(found.captions) == {"compute", "memory"}


def test_without_costs_there_are_no_figures() -> None:
    found = findings(runs(measured=False))
    assert not found.figures
    assert set(found.tables[-1].lines[0][1:]) == {"-"}


@pytest.mark.parametrize("figure", ["compute", "memory"])
def test_figures_hold_every_arm(figure: str) -> None:
    (ax,) = findings(runs()).figures[figure].axes
    assert ax.get_legend_handles_labels()[1] == ["dense", "rigl", "gradual*"]
