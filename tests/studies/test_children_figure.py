"""The figure of parents and children: what stands where, and what is refused."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from studies.children_figure import children_figure

LABELS = torch.arange(8) % 2


def figure(**changes: object) -> Figure:
    """Two neurons: the first has two children, the second one; sample ``i`` is a picture of grey ``i / 10``."""
    before = torch.zeros(8, 2)
    before[3, 0], before[4, 0], before[:, 1] = 2.0, 1.0, torch.arange(8.0)
    after = torch.zeros(8, 3)
    after[5, 0], after[:, 2] = 1.0, 1.0
    pictures = np.tile((np.arange(8) / 10).reshape(8, 1, 1), (1, 4, 4))
    given = {"pictures": pictures, "labels": LABELS, "before": before, "after": after}
    options = {"parents": torch.tensor([0, 0, 1]), "count": 3, "title": "a title"}
    return children_figure(**{**given, **options, **changes})  # type: ignore[arg-type]


def strip(drawn: Figure, panel: int) -> np.ndarray:
    return np.asarray(drawn.axes[panel].images[0].get_array())


def test_every_neuron_stands_in_a_row_with_its_own_children() -> None:
    drawn = figure()
    titles = [ax.get_title() for ax in drawn.axes if ax.axison]
    assert titles == [
        "neuron 0 before: 0.9 bits",  # 2/3 and 1/3
        "child 1: 0.0 bits",
        "child 2: silent",
        "neuron 1 before: 1.0 bits",
        "child 1: 1.0 bits",
    ]
    assert drawn.get_suptitle() == "a title"


def test_pictures_come_strongest_first_and_missing_ones_stay_white() -> None:
    row = strip(figure(), 0)[0]
    assert row.tolist() == pytest.approx([0.3] * 4 + [1] + [0.4] * 4 + [1] + [1] * 4)


def test_pictures_may_be_coloured_whole_numbers_or_of_pil() -> None:
    grey = [np.full((4, 4), i * 25, np.uint8) for i in range(8)]
    images = [Image.fromarray(each).convert("RGB") for each in grey]
    for pictures in (grey, images):
        assert strip(figure(pictures=pictures), 0)[0, 0] == pytest.approx(75 / 255)


def test_the_same_activations_make_the_same_picture() -> None:
    def png() -> bytes:
        stream = BytesIO()
        figure().savefig(stream, format="png")
        return stream.getvalue()

    assert png() == png()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parents": torch.tensor([0, 1])}, r"one for each of the 3 children, found torch.int64 of shape \(2,\)"),
        ({"parents": torch.tensor([0.0, 0.0, 1.0])}, "have to be int64, .* found torch.float32"),
        ({"parents": torch.tensor([0, 0, 2])}, "have to be neurons 0 to 1, found 0 to 2"),
        ({"after": torch.ones(7, 3)}, "the same samples, found 8 and 7"),
        ({"count": 9}, "between 1 and the number of samples, 8, found 9"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        figure(**changes)
