"""A wide and sparse start: exact counts, allocations, scores, and refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.rewiring import ALLOCATIONS, sparsify
from fpe_lightning.sparse import check_masks, mask_of
from tests.support.nets import cnn, mlp


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=2, max_size=5),
    density=st.floats(0.05, 0.95),
    allocation=st.sampled_from(list(ALLOCATIONS)),
)
def test_counts_are_exact_and_fit(sizes: list[tuple[int, int]], density: float, allocation: str) -> None:
    shapes = [torch.Size(size) for size in sizes]
    keep = round(density * sum(shape.numel() for shape in shapes))
    try:
        counts = ALLOCATIONS[allocation](shapes, keep)
    except ValueError:
        assert allocation == "classifier_dense"
        return
    assert sum(counts) == keep
    assert all(0 <= count <= shape.numel() for count, shape in zip(counts, shapes, strict=True))


@pytest.mark.parametrize("allocation", list(ALLOCATIONS))
def test_masks_hold_the_counts(allocation: str) -> None:
    model = mlp(32, 16, 5)
    counts = sparsify(model, 0.3, allocation=allocation)
    assert sum(counts.values()) == round(0.3 * (32 * 16 + 16 * 5))
    for name, count in counts.items():
        layer = model.get_submodule(name)
        mask = mask_of(layer)
        assert count == (layer.weight.numel() if mask is None else int(mask.sum()))
    assert fpe.count_nonzeros(model) == sum(counts.values()) + 16 + 5
    check_masks(model)


def test_convolutions_and_exclusions() -> None:
    model = cnn()
    counts = sparsify(model, 0.5, exclude="9")
    assert set(counts) == {name for name, module in model.named_modules() if mask_of(module) is not None}
    assert mask_of(model[9]) is None
    check_masks(model)


def test_masks_depend_on_the_seed_alone() -> None:
    models = [mlp(32, 16, 5, seed=seed) for seed in (0, 1, 0)]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        sparsify(model, 0.3, seed=seed)
    masks = [mask_of(model[0]) for model in models]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_rescaling_keeps_the_variance_of_sums() -> None:
    model, plain = mlp(512, 64, 5), mlp(512, 64, 5)
    sparsify(model, 0.25)
    x = torch.randn(256, 512)
    ratio = float((model[0](x).var() / plain[0](x).var()).detach())
    assert 0.8 < ratio < 1.25
    kept = mlp(512, 64, 5)
    sparsify(kept, 0.25, rescale=False)
    assert torch.equal(kept[0].weight, plain[0].weight * mask_of(kept[0]))


def test_gradient_scores_keep_what_the_loss_depends_on() -> None:
    model = mlp(32, 16, 5)
    x, y = torch.randn(64, 32), torch.randint(5, (64,))
    x[:, 16:] = 0  # nothing depends on these inputs
    sparsify(model, 0.3, scores="gradient", loss=lambda model: F.cross_entropy(model(x), y))
    assert not mask_of(model[0])[:, 16:].any()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"density": 0}, "`density` is a share"),
        ({"density": 1.0}, "`density` is a share"),
        ({"density": 1e-4}, "use a larger one"),
        ({"allocation": "even"}, "`allocation` is one of 'uniform', 'erk', 'classifier_dense'"),
        ({"scores": "snip"}, "`scores` is one of"),
        ({"scores": "gradient"}, "needs a `loss`"),
        ({"loss": lambda model: 0}, "with random scores leave it out"),
        ({"layers": "fc"}, "no such layer"),
        ({"layers": "0", "exclude": "0"}, "No layer is left"),
        ({"density": 0.1, "allocation": "classifier_dense"}, "keeps all 80 weights of the last layer"),
    ],
)
def test_refusals_change_nothing(arguments: dict, words: str) -> None:
    model = mlp(32, 16, 5)
    with pytest.raises(ValueError, match=words):
        sparsify(model, **{"density": 0.3, **arguments})
    assert type(model[0]) is nn.Linear


def test_a_second_call_is_refused() -> None:
    model = mlp(32, 16, 5)
    sparsify(model, 0.3)
    with pytest.raises(ValueError, match="`0` is sparse already"):
        sparsify(model, 0.3)


def test_a_dense_model_reads_its_state_dict() -> None:
    model, fresh = mlp(32, 16, 5), mlp(32, 16, 5, seed=1)
    sparsify(model, 0.3)
    fpe.load_expanded_state_dict(fresh, model.state_dict())
    assert torch.equal(mask_of(fresh[0]), mask_of(model[0]))
    assert fpe.count_nonzeros(fresh) == fpe.count_nonzeros(model)


def test_a_sparse_start_can_be_split() -> None:
    model = mlp(32, 16, 5)
    sparsify(model, 0.5)
    before = fpe.count_nonzeros(model)
    report = fpe.expand(model, fpe.Paper(alpha=2), example_inputs=torch.randn(2, 32))
    assert report.nonzeros_after == before == fpe.count_nonzeros(model)
    fresh = mlp(32, 16, 5, seed=1)
    fpe.load_expanded_state_dict(fresh, model.state_dict())
    assert torch.equal(mask_of(fresh[0]), mask_of(model[0]))
