"""The folded layout computes, trains, saves and loads as the masked one does, at the size of the parent's weight."""

from __future__ import annotations

import copy
import math
import pickle
import re
import shutil
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

import fpe_lightning as fpe
from fpe_lightning.partitions import Contiguous, Feature, Overlapping, Random, SemiStructured, Shared
from fpe_lightning.sparse import FoldedLinear, dense_mask, dense_weight, layout_of, set_mask, store
from fpe_lightning.sparse.folded import products
from fpe_lightning.sparse.folded.codes import Fold, decode, encode, find_fold, fold_of
from fpe_lightning.sparse.folded.unfolding import fold_back, unfold, unfold_plainly

FOLDS = {
    "2 rows": Fold(2),
    "3 rows": Fold(3),
    "4 rows": Fold(4),
    "2 columns": Fold(columns=2),
    "4 columns": Fold(columns=4),
    "4 columns in runs": Fold(columns=2, column_run=2),
    "rows and columns": Fold(2, columns=2),
}
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 5e-2}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(20, 24), (3, 5, 20)),
    "conv1d": (lambda: nn.Conv1d(8, 12, 3, padding=1), (3, 8, 7)),
    "conv2d": (lambda: nn.Conv2d(8, 12, 3, stride=2), (3, 8, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(8, 12, 2), (2, 8, 3, 3, 3)),
}


def disjoint(shape: torch.Size, fold: Fold, seed: int = 0) -> Tensor:
    """A mask of adjacent children that share no place; some places are pruned."""
    generator = torch.Generator().manual_seed(seed)
    code = torch.randint(0, fold.codes + 1, fold.folded_shape(shape), generator=generator)
    mask = torch.zeros(shape, dtype=torch.bool)
    for child, part in enumerate(fold.parts(mask)):
        part.copy_(fold.places(code) == child)
    return mask


def pair(kind: str, fold: Fold, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """A masked layer and its folded twin."""
    torch.manual_seed(0)
    masked = LAYERS[kind][0]().to(dtype)
    set_mask(masked, "weight", disjoint(masked.get_parameter("weight").shape, fold))
    folded = copy.deepcopy(masked)
    store(folded, "folded")
    return masked, folded


@given(
    st.integers(1, 5), st.integers(1, 20), st.integers(1, 3), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99)
)
@settings(max_examples=50)
def test_codes_hold_every_disjoint_mask(
    parents: int, children: int, run: int, inputs: int, columns: int, seed: int
) -> None:
    fold = Fold(children, run, columns, 1)
    folded_shape = torch.Size([parents * run, inputs])
    code = torch.randint(0, fold.codes + 1, folded_shape, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(fold.wide_shape(folded_shape), dtype=torch.bool)
    for child, part in enumerate(fold.parts(mask)):
        part.copy_(fold.places(code) == child)
    codes = encode(mask, fold)
    assert fold_of(codes) == fold
    assert torch.equal(decode(codes, fold, folded_shape), code.to(torch.uint8))
    assert len(codes) == 10 + math.ceil(code.numel() * fold.bits / 8)
    wide = torch.randn(mask.shape) * mask
    folded = fold_back(wide, codes, fold)
    assert torch.equal(unfold(folded, codes, fold), wide)
    assert torch.equal(unfold_plainly(folded, codes, fold), wide)
    found = find_fold(mask, (run,))
    if found is not None:
        assert torch.equal(unfold(fold_back(mask, encode(mask, found), found), encode(mask, found), found), mask)
    if children > 1 and 2 * mask.count_nonzero() <= mask.numel():
        assert found is not None
        assert found.children % children == 0 or found.children >= children


def test_infinite_neighbours_do_not_become_nan() -> None:
    codes = encode(torch.eye(2, dtype=torch.bool), Fold(2))
    wide = torch.tensor([[1.0, torch.inf], [torch.nan, 2.0]])
    assert fold_back(wide, codes, Fold(2)).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients_are_those_of_the_masked_layer(kind: str, fold: str, dtype: torch.dtype) -> None:
    masked, folded = pair(kind, FOLDS[fold], dtype)
    assert folded.get_parameter("weight").numel() * FOLDS[fold].codes == masked.get_parameter("weight").numel()
    x = torch.randn(LAYERS[kind][1], dtype=dtype, requires_grad=True)
    ours, theirs = folded(x), masked(x)
    torch.testing.assert_close(ours, theirs, atol=CLOSE[dtype], rtol=0)
    upstream = torch.randn_like(ours)
    mine = torch.autograd.grad(ours, [x, *folded.parameters()], upstream)
    other = torch.autograd.grad(theirs, [x, *masked.parameters()], upstream)
    codes = folded.get_buffer("fpe_fold")
    packed = fold_back(other[1], codes, fold_of(codes))
    for one, two in zip(mine, (other[0], packed, other[2]), strict=True):
        torch.testing.assert_close(one, two, atol=10 * CLOSE[dtype], rtol=0)
    assert fpe.count_nonzeros(folded) == fpe.count_nonzeros(masked)


@pytest.mark.parametrize("fold", ["2 rows", "2 columns", "rows and columns"])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_right(kind: str, fold: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PIECE", 64)  # several pieces
    _, folded = pair(kind, FOLDS[fold], torch.float64)
    x = torch.randn(LAYERS[kind][1], dtype=torch.float64, requires_grad=True)

    def function(weight: Tensor, x: Tensor) -> Tensor:
        out: Tensor = functional_call(folded, {"weight": weight}, (x,))
        return out

    weight = folded.get_parameter("weight").detach().requires_grad_()
    assert torch.autograd.gradcheck(function, (weight, x), fast_mode=True)
    if kind == "linear":
        assert torch.autograd.gradgradcheck(function, (weight, x), fast_mode=True)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("kind", LAYERS)
def test_layouts_convert_into_each_other_bit_by_bit(kind: str, fold: str) -> None:
    masked, folded = pair(kind, FOLDS[fold])
    assert torch.equal(dense_weight(folded), dense_weight(masked))
    assert torch.equal(dense_mask(folded), dense_mask(masked))  # type: ignore[arg-type]
    assert folded.get_parameter("weight").shape == FOLDS[fold].folded_shape(masked.get_parameter("weight").shape)
    store(folded, "masked")
    assert torch.equal(folded.get_parameter("weight"), masked.get_parameter("weight"))


def test_autocast_unfolds_in_its_own_precision() -> None:
    masked, folded = pair("linear", Fold(2))
    x = torch.randn(4, 20)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = folded(x), masked(x)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)


def test_nothing_wide_is_kept_for_the_backward_pass() -> None:
    _, folded = pair("linear", Fold(4))
    kept: list[torch.Size] = []

    def seen(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        folded(torch.randn(2, 20, requires_grad=True)).sum().backward()
    assert torch.Size([24, 20]) not in kept
    assert torch.Size([20, 24]) not in kept


def test_a_weight_that_changed_before_the_backward_pass_is_named() -> None:
    _, folded = pair("linear", Fold(2))
    out = folded(torch.randn(2, 20, requires_grad=True))
    with torch.no_grad():
        folded.get_parameter("weight").mul_(2)
    with pytest.raises(RuntimeError, match="changed in place between the forward and the backward pass"):
        out.sum().backward()


def test_it_compiles_whole() -> None:
    _, folded = pair("linear", Fold(2))
    x = torch.randn(4, 20, requires_grad=True)
    compiled = torch.compile(folded, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), folded(x))
    ours = torch.autograd.grad(compiled(x).square().sum(), [x, *folded.parameters()])
    theirs = torch.autograd.grad(folded(x).square().sum(), [x, *folded.parameters()])
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_inductor_makes_one_wide_tensor_at_a_time() -> None:
    """Forward: the wide weight. Backward: the wide weight again, and the wide gradient. None is kept in between."""
    torch.manual_seed(0)
    layers = [nn.Linear(40, 32), nn.Linear(32, 32)]
    for layer in layers:
        set_mask(layer, "weight", disjoint(layer.weight.shape, Fold(2)))
        store(layer, "folded")
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    x = torch.randn(3, 40)
    compiled = torch.compile(model, fullgraph=True)
    kept: list[torch.Size] = []

    def seen(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    def run() -> list[Tensor]:
        with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            out = compiled(x)
        return [out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))]

    ours, codes = run_and_get_code(run)
    out = model(x)
    expected = [out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))]
    for one, two in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, two)
    shapes = re.findall(r"empty_strided_cpu\(\(([^)]*)\)", "".join(codes))
    sizes = [math.prod(map(int, re.findall(r"\d+", shape))) for shape in shapes]
    assert 2 <= sizes.count(32 * 40) <= 3  # the first layer has no gradient of its input
    assert 2 <= sizes.count(32 * 32) <= 3
    assert not [shape for shape in kept if shape.numel() in (32 * 40, 32 * 32)]


def test_copies_and_pickles_compute_alike() -> None:
    _, folded = pair("linear", Fold(2))
    x = torch.randn(4, 20)
    for twin in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert torch.equal(twin(x), folded(x))
    assert folded.double()(x.double()).dtype == torch.float64


def test_averaged_buffers_do_not_change_codes() -> None:
    _, folded = pair("linear", Fold(2))
    x = torch.randn(4, 20)
    average = AveragedModel(folded, avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
    for _ in range(20):
        average.update_parameters(folded)
    torch.testing.assert_close(average(x), folded(x))
    assert torch.equal(average.state_dict()["module.fpe_fold"], folded.get_buffer("fpe_fold"))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5))


@pytest.mark.parametrize("alpha", [2, 4])
@pytest.mark.parametrize(
    "partition", [Random(), Shared(groups=2), Contiguous(), Feature(), SemiStructured()], ids=lambda p: type(p).__name__
)
def test_every_disjoint_split_trains_as_its_masked_twin(partition: fpe.partitions.Partition, alpha: int) -> None:
    if isinstance(partition, SemiStructured):
        alpha = 2
    x, models = torch.randn(8, 64), [net(), net()]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in models]

    def step() -> list[Tensor]:
        outputs = []
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            outputs.append(model(x))
            outputs[-1].square().mean().backward()
            optimizer.step()
        return outputs

    step()
    before = fpe.count_nonzeros(models[0])
    for model, optimizer, layout in zip(models, optimizers, ("masked", "folded"), strict=True):
        expansion = fpe.Expansion(alpha=alpha, partition=partition, layout=layout)
        fpe.expand(model, expansion, sites=["0"], optimizer=optimizer, example_inputs=x)
        assert fpe.count_nonzeros(model) == before
    assert isinstance(models[1][0], FoldedLinear)
    assert models[1][0].weight.shape == (32, 64)  # the parent's
    for _ in range(5):
        ours, theirs = step()
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert fpe.count_nonzeros(models[1]) == before


def test_repeated_splits_fold_to_the_first_parent_and_load_everywhere() -> None:
    x, model = torch.randn(8, 64), net()
    for _ in range(2):
        fpe.expand(model, fpe.Expansion(layout="folded"), sites=["0"], example_inputs=x)
    assert layout_of(model[0]).dense_shape(model[0]) == (128, 64)
    assert model[0].weight.shape == (32, 64)
    masked = copy.deepcopy(model)
    store(masked[0], "masked")
    for source in (model, masked):
        for target in (net(), copy.deepcopy(model), copy.deepcopy(masked)):
            fpe.load_expanded_state_dict(target, source.state_dict())
            assert torch.equal(target(x), source(x))


def test_partitioned_outgoing_weights_fold_along_their_columns() -> None:
    """The middle layer folds along both axes: each of its weights has one reader and one writer."""
    x, models = torch.randn(8, 64), [net(), net()]
    for model, layout in zip(models, ("masked", "folded"), strict=True):
        fpe.expand(model, fpe.Expansion(alpha=4, outgoing="partition", layout=layout), example_inputs=x)
    masked, folded = models
    assert [folded[index].weight.shape for index in (0, 2, 4)] == [(32, 64), (24, 32), (5, 24)]  # the parents'
    assert fpe.count_nonzeros(masked) == fpe.count_nonzeros(folded)
    for index in (0, 2, 4):
        assert torch.equal(dense_weight(folded[index]), dense_weight(masked[index]))
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in models]
    for _ in range(5):
        outputs = []
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            outputs.append(model(x))
            outputs[-1].square().mean().backward()
            optimizer.step()
        torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-4)
    for source, target in ((folded, net()), (folded, copy.deepcopy(masked)), (masked, copy.deepcopy(folded))):
        fpe.load_expanded_state_dict(target, source.state_dict())
        assert torch.equal(target(x), source(x))
    fpe.expand(folded, fpe.Expansion(layout="folded", outgoing="partition"), sites=["2"], example_inputs=x)
    assert folded[2].weight.shape == (24, 32)


def test_channels_that_are_flattened_fold_in_runs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 6))
    x = torch.randn(2, 3, 5, 5)
    fpe.expand(model, fpe.Expansion(outgoing="partition", layout="folded"), example_inputs=x)
    assert model[0].weight.shape == (8, 3, 3, 3)
    assert model[3].weight.shape == (6, 72)
    assert fold_of(model[3].fpe_fold) == Fold(columns=2, column_run=9)
    masked = copy.deepcopy(model)
    for index in (0, 3):
        store(masked[index], "masked")
    torch.testing.assert_close(model(x), masked(x))


def test_outgoing_copies_stay_masked_and_refused_layers_are_named() -> None:
    x, model = torch.randn(8, 64), net()
    fpe.expand(model, fpe.Expansion(layout="folded"), sites=["0"], example_inputs=x)
    assert layout_of(model[2]).kind == "masked"  # each copy is a weight of its own
    depthwise = nn.Conv2d(8, 8, 3, groups=4)
    set_mask(depthwise, "weight", disjoint(depthwise.weight.shape, Fold(2)))
    with pytest.raises(ValueError, match="the convolution already has 4 groups"):
        store(depthwise, "folded")


def test_half_precision_sums_pieces_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    masked, folded = pair("linear", Fold(2), torch.bfloat16)
    x = torch.randn(64, 20, dtype=torch.bfloat16, requires_grad=True)
    monkeypatch.setattr(products, "PIECE", 40)
    upstream = torch.randn(64, 24, dtype=torch.bfloat16)
    (ours,) = torch.autograd.grad(folded(x), x, upstream)
    (theirs,) = torch.autograd.grad(masked(x), x, upstream)
    torch.testing.assert_close(ours, theirs, atol=5e-2, rtol=2**-7)


def test_overlapping_partitions_are_refused() -> None:
    x, model = torch.randn(8, 64), net()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="two children of one neuron share an input"):
        fpe.expand(model, fpe.Expansion(partition=Overlapping(), layout="folded"), sites=["0"], example_inputs=x)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_pruned_places_stay_zero_for_every_reader_and_optimizer() -> None:
    masked, _ = pair("linear", Fold(2))
    layer = copy.deepcopy(masked)
    store(layer, "folded")
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(24, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before = fpe.count_nonzeros(model)
    for _ in range(3):
        optimizer.zero_grad()
        penalty = (layer.get_parameter("weight") @ layer.get_parameter("weight").T - torch.eye(12)).square().sum()
        (model(torch.randn(4, 20)).square().mean() + penalty).backward()
        optimizer.step()
    assert fpe.count_nonzeros(model) == before
    fpe.sparse.check_masks(model)
