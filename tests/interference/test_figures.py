"""Figures: what is labelled, what shares a scale, and how large they get."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.nn.functional import one_hot

from fpe_lightning.interference import LayerState
from fpe_lightning.interference.figures import capacity_figure, gram_figure, mask_figure
from fpe_lightning.interference.weight_figures import kernel_figure, weights_figure

BEFORE_AND_AFTER = [gram_figure, weights_figure, kernel_figure, capacity_figure]


def split(neurons: int, inputs: int, alpha: int, *kernel: int) -> tuple[LayerState, LayerState]:
    """A random layer and its split by a random balanced partition."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(neurons, inputs, *kernel, generator=generator)
    before = LayerState(weight, torch.ones_like(weight, dtype=torch.bool), torch.arange(neurons))
    assignment = torch.stack([torch.randperm(inputs, generator=generator) % alpha for _ in range(neurons)])
    mask = one_hot(assignment, alpha).transpose(1, 2).flatten(0, 1).bool()
    mask = mask.reshape(*mask.shape, *[1] * len(kernel)).expand(-1, -1, *kernel).contiguous()
    after = LayerState(weight.repeat_interleave(alpha, 0) * mask, mask, before.parents.repeat_interleave(alpha))
    return before, after


def drawn(figure: Figure) -> Figure:
    FigureCanvasAgg(figure).draw()
    return figure


def texts(figure: Figure) -> str:
    titles = [figure.get_suptitle(), *(ax.get_title() for ax in figure.axes)]
    return "\n".join(titles)


def tick_overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Neighbouring tick labels of one axis that touch."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    touching = []
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            labels = [label for label in axis.get_ticklabels() if label.get_text() and label.get_visible()]
            boxes = [label.get_window_extent(renderer) for label in labels]
            pairs = zip(labels, labels[1:], boxes, boxes[1:], strict=False)
            touching += [(a.get_text(), b.get_text()) for a, b, first, second in pairs if first.overlaps(second)]
    return touching


@pytest.mark.parametrize("shape", [(4, 16, 2), (128, 512, 4), (1, 1, 1), (6, 5, 3)])
def test_titles_say_site_alpha_width_and_nonzeros(shape: tuple[int, int, int]):
    neurons, inputs, alpha = shape
    before, after = split(*shape)
    widths = f"alpha = {alpha}, width {neurons} → {neurons * alpha}"
    for figure in (gram_figure, weights_figure, capacity_figure):
        title = texts(figure(before, after, "net.0"))
        assert "net.0" in title
        assert f"{widths}, non-zeros {neurons * inputs:,} → {neurons * inputs:,}" in title
    total = neurons * alpha * inputs
    assert f"{widths}, {neurons * inputs:,} of {total:,} weights non-zero" in texts(mask_figure(after, "net.0"))


@pytest.mark.parametrize("shape", [(4, 16, 2), (128, 512, 4), (1, 1, 1), (4, 16, 2, 3, 3)])
def test_every_axis_is_labelled_and_no_tick_labels_touch(shape: tuple[int, ...]):
    before, after = split(*shape)
    functions = BEFORE_AND_AFTER if len(shape) > 3 else [gram_figure, weights_figure, capacity_figure]
    figures = [function(before, after, "net.0") for function in functions] + [mask_figure(after, "net.0")]
    for figure in map(drawn, figures):
        assert tick_overlaps(figure) == []
        assert max(figure.get_size_inches()) <= 20
        for ax in figure.axes:
            assert ax.get_ylabel()
            assert ax.get_xlabel() or ax.get_label() == "<colorbar>"


@pytest.mark.parametrize("function", [gram_figure, weights_figure, kernel_figure])
def test_both_panels_share_one_colour_scale_with_one_colour_bar(function):
    before, after = split(4, 16, 2, 3)
    left, right, bar = function(before, after, "net.0").axes
    assert (left.get_title(), right.get_title()) == ("before", "after")
    assert bar.get_label() == "<colorbar>"
    assert left.images[0].get_clim() == right.images[0].get_clim()
    low, high = left.images[0].get_clim()
    assert low == (0 if function is kernel_figure else -high)


def test_the_gram_matrix_is_shown_whole():
    before, after = split(128, 512, 4)
    left, right, _ = gram_figure(before, after, "net.0").axes
    np.testing.assert_allclose(left.images[0].get_array(), before.weight.T @ before.weight, atol=1e-4)
    assert right.images[0].get_array().shape == (512, 512)
    assert left.get_xlabel() == "input feature"


def test_rows_are_grouped_by_parent_and_empty_cells_left_out():
    before, after = split(4, 16, 2)
    order = torch.tensor([7, 0, 2, 4, 6, 1, 3, 5])
    shuffled = LayerState(after.weight[order], after.mask[order], after.parents[order])
    ax = weights_figure(before, shuffled, "net.0").axes[1]
    shown = ax.images[0].get_array()
    by_parent = torch.argsort(shuffled.parents, stable=True)
    np.testing.assert_array_equal(shown.mask, ~shuffled.mask[by_parent].numpy())
    np.testing.assert_array_equal(shown.filled(0), shuffled.weight[by_parent].numpy())
    assert ax.get_ylabel() == "parent (children adjacent)"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(ax.get_yticks(), [0.5, 2.5, 4.5, 6.5])


def test_the_mask_shows_each_child_in_a_colour_of_its_own_luminance():
    _, after = split(4, 16, 4)
    figure = mask_figure(after, "net.0")
    image = figure.axes[0].images[0]
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["0", "1", "2", "3"]
    luminance = image.cmap(image.norm(np.arange(4)))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(luminance) > 0.1).all()
    np.testing.assert_array_equal(image.get_array()[:4].max(axis=1), [0, 1, 2, 3])


def test_signs_and_empty_cells_are_marked_where_there_is_room():
    small, large = (weights_figure(*split(*shape), "net.0") for shape in ((4, 16, 2), (128, 512, 4)))
    legend = [text.get_text() for text in small.legends[0].get_texts()]
    assert legend == ["no weight", "negative"]
    assert small.axes[1].patch.get_hatch()
    assert [text.get_text() for text in large.legends[0].get_texts()] == ["no weight"]
    assert not large.axes[1].patch.get_hatch()


def test_kernels_are_summed_over_their_taps():
    before, after = split(4, 6, 2, 3, 3)
    signed, absolute = weights_figure(before, after, "conv"), kernel_figure(before, after, "conv")
    np.testing.assert_allclose(signed.axes[0].images[0].get_array(), before.weight.sum((2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(absolute.axes[0].images[0].get_array(), before.weight.abs().sum((2, 3)), rtol=1e-5)
    assert signed.axes[2].get_ylabel() == "weight, summed over the kernel"
    assert absolute.axes[2].get_ylabel() == "absolute weight, summed over the kernel"


def test_capacities_before_and_after_differ_in_line_style():
    before, after = split(4, 16, 2)
    figure = capacity_figure(before, after, "net.0")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0::2] == ["before", "after"]
    assert labels[1] == f"mean before: {before.capacities.mean():.3g}"
    assert {line.get_linestyle() for line in figure.axes[0].lines} == {"-", "--"}


def test_very_wide_layers_are_thinned_by_whole_parents_and_say_so():
    before, after = split(1200, 4500, 2)
    ax = mask_figure(after, "net.0").axes[0]
    rows, columns = ax.images[0].get_array().shape
    assert (rows, columns) == (1200, 1500)  # every second of 1200 parents, with both of its children
    assert ax.get_xlabel() == "input feature (one in 3 shown)"
    assert gram_figure(before, after, "net.0").axes[0].images[0].get_array().shape == (1500, 1500)


def test_a_second_split_keeps_the_original_parents():
    _, middle = split(3, 12, 2)
    twice = LayerState(
        middle.weight.repeat_interleave(2, 0), middle.mask.repeat_interleave(2, 0), middle.parents.repeat_interleave(2)
    )
    assert "alpha = 4, width 3 → 12" in texts(mask_figure(twice, "net.0"))
    assert "alpha = 2, width 6 → 12" in texts(weights_figure(middle, twice, "net.0"))


def test_inputs_that_were_split_too_are_shown_and_named():
    before, after = split(4, 6, 2, 3)
    mask = after.mask.repeat_interleave(2, 1)
    wider = LayerState(after.weight.repeat_interleave(2, 1), mask, after.parents)
    for function in BEFORE_AND_AFTER:
        assert "width 4 → 8, inputs 6 → 12, non-zeros 72 → 144" in texts(drawn(function(before, wider, "net.0")))
    left, right, _ = gram_figure(before, wider, "net.0").axes
    assert (left.images[0].get_array().shape, right.images[0].get_array().shape) == ((6, 6), (12, 12))


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_dead_and_diverged_layers_are_drawn(value: float):
    before, after = split(4, 6, 2, 3)
    broken = LayerState(torch.full_like(after.weight, value), after.mask, after.parents)
    for function in BEFORE_AND_AFTER:
        for pair in ((before, broken), (broken, broken)):
            drawn(function(*pair, "net.0"))
    drawn(mask_figure(LayerState(broken.weight, torch.zeros_like(after.mask), after.parents), "net.0"))


def test_a_linear_layer_has_no_kernels_to_draw():
    before, after = split(4, 6, 2)
    with pytest.raises(ValueError, match=r"fc has shape \(4, 6\): use `weights_figure` for a linear layer"):
        kernel_figure(before, after, "fc")


def test_drawing_leaves_pyplot_without_figures():
    before, after = split(4, 6, 2)
    drawn(gram_figure(before, after, "net.0"))
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
