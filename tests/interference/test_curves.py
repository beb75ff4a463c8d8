"""The figure of a run's curves: what is drawn, and how splits are named."""

from __future__ import annotations

from fpe_lightning.interference.curves import curves_figure


def test_curves_and_every_split_are_drawn() -> None:
    curves = {"train/loss": [(1, 3.0), (2, 2.0), (3, 1.0)], "val/loss": [(3, 1.5)]}
    (ax,) = curves_figure(curves, [1, 2], "loss").axes
    assert [list(line.get_ydata()) for line in ax.lines[:2]] == [[3.0, 2.0, 1.0], [1.5]]
    assert [list(line.get_xdata()) for line in ax.lines[2:]] == [[1, 1], [2, 2]]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["train/loss", "val/loss", "splits (steps 1, 2)"]
    assert ax.get_ylabel() == "loss"


def test_a_run_without_a_split_has_no_line_and_says_nothing_of_one() -> None:
    (ax,) = curves_figure({"val/loss": [(1, 1.0)]}, [], "loss").axes
    assert [line.get_label() for line in ax.lines] == ["val/loss"]
