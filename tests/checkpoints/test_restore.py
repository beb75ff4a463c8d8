"""A ``state_dict`` of any stage loads into a model of any stage; what does not fit is named, and changes nothing."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fpe_lightning as fpe
from fpe_lightning.sparse import Record, check_masks, mask_of, record_of
from fpe_lightning.sparse.record import RECORD
from tests.support.nets import cnn, equal, mlp, snapshot, train

X = torch.randn(8, 96, generator=torch.Generator().manual_seed(0))


def stages() -> list[nn.Module]:
    """One model after 0, 1, 2 and 3 splits, with training in between."""
    model = mlp(96, 4, 3, norm=True)
    optimizer = AdamW(model.parameters(), lr=0.01)
    found = []
    for alpha in (2, 2, 3, None):
        train(model, optimizer, X)
        found.append(copy.deepcopy(model))
        if alpha:
            fpe.expand(model, alpha=alpha, optimizer=optimizer, example_inputs=X)
    return found


STAGES = stages()


@pytest.mark.parametrize("source", range(4))
@pytest.mark.parametrize("target", range(4))
def test_every_stage_loads_into_every_stage(source: int, target: int) -> None:
    saved, model = STAGES[source], copy.deepcopy(STAGES[target])
    saved.zero_grad()
    model.zero_grad()
    assert fpe.restore_structure(model, saved.state_dict()) == (source != target)
    model.load_state_dict(saved.state_dict())
    assert list(model.state_dict()) == list(saved.state_dict())
    assert equal(dict(model.state_dict()), dict(saved.state_dict()))
    assert [type(module) for module in model.modules()] == [type(module) for module in saved.modules()]
    for ours, theirs in zip(model.modules(), saved.modules(), strict=True):
        for name in ("in_features", "out_features", "num_features"):
            assert getattr(ours, name, None) == getattr(theirs, name, None)
    twin = copy.deepcopy(saved)
    for net in (model, twin):
        train(net, AdamW(net.parameters(), lr=0.01, weight_decay=0.1), X)
    assert equal(dict(model.state_dict()), dict(twin.state_dict()))
    check_masks(model)


def test_a_rebuilt_model_splits_on_as_the_original_does() -> None:
    model, original = copy.deepcopy(STAGES[0]), copy.deepcopy(STAGES[2])
    fpe.load_expanded_state_dict(model, original.state_dict())
    for net in (model, original):
        fpe.expand(net, alpha=2, example_inputs=X)
    assert equal(dict(model.state_dict()), dict(original.state_dict()))
    assert record_of(model[0]) == record_of(original[0])


def test_convolutions_come_back_with_their_channels() -> None:
    x = torch.randn(2, 16, 8, 8)
    wide, narrow, before = cnn(), cnn(), cnn()
    fpe.expand(wide, alpha=2, sites=["0", "4"], example_inputs=x)
    fpe.load_expanded_state_dict(narrow, wide.state_dict())
    assert torch.equal(narrow.eval()(x), wide.eval()(x))
    fpe.load_expanded_state_dict(narrow, before.state_dict())
    assert torch.equal(narrow(x), before.eval()(x))
    assert type(narrow[0]) is nn.Conv2d
    assert (narrow[0].out_channels, narrow[1].num_features, narrow[9].in_features) == (8, 8, 16)
    assert record_of(narrow[0]) is None


@pytest.mark.parametrize("source", range(3))
@pytest.mark.parametrize("target", range(3))
def test_safetensors_and_torch_files(source: int, target: int, tmp_path: Path) -> None:
    saved = STAGES[source]
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    read = load_file(tmp_path / "model.safetensors"), torch.load(tmp_path / "model.pt", weights_only=True)
    for state in read:
        model = copy.deepcopy(STAGES[target])
        fpe.load_expanded_state_dict(model, state)
        assert equal(dict(model.state_dict()), dict(saved.state_dict()))
        assert torch.equal(copy.deepcopy(model).eval()(X), copy.deepcopy(saved).eval()(X))


def test_the_functions_of_safetensors_for_whole_models(tmp_path: Path) -> None:
    model = copy.deepcopy(STAGES[0])
    fpe.restore_structure_on_load(model)
    for stage in (2, 1, 3, 0):
        save_model(STAGES[stage], str(tmp_path / "model.safetensors"))
        assert load_model(model, tmp_path / "model.safetensors") == (set(), [])
        assert equal(dict(model.state_dict()), dict(STAGES[stage].state_dict()))


@pytest.mark.parametrize("source", range(4))
@pytest.mark.parametrize("target", range(4))
def test_an_optimizer_that_is_there_already_goes_on(source: int, target: int) -> None:
    saved, model = copy.deepcopy(STAGES[source]), copy.deepcopy(STAGES[target])
    optimizer, ours = (AdamW(each.parameters(), lr=0.01, weight_decay=0.1) for each in (saved, model))
    for net, each in ((saved, optimizer), (model, ours)):
        train(net, each, X)
    fpe.load_expanded_state_dict(model, copy.deepcopy(saved.state_dict()), optimizer=ours)
    assert all(a is b for a, b in zip(ours.param_groups[0]["params"], model.parameters(), strict=True))
    assert set(ours.state) <= set(model.parameters()), "old parameters are still held"
    ours.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, each in ((saved, optimizer), (model, ours)):
        train(net, each, X)
    assert equal(dict(model.state_dict()), dict(saved.state_dict()))


def test_an_optimizer_is_as_before_where_loading_raises() -> None:
    model = copy.deepcopy(STAGES[0])
    optimizer = AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, X)
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        fpe.load_expanded_state_dict(model, {**STAGES[1].state_dict(), "extra": X}, optimizer=optimizer)
    assert equal(before, snapshot(model, optimizer))


def test_a_loaded_model_holds_nothing_of_what_it_was_loaded_from() -> None:
    """A buffer that shared memory with a mapped file would keep the whole file in memory."""
    for layout in ("masked", "grouped"):
        wide, narrow = mlp(96, 4, 3), mlp(96, 4, 3)
        fpe.expand(wide, fpe.Expansion(alpha=2, partition="shared", prune="columns", layout=layout), example_inputs=X)
        state = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
        fpe.load_expanded_state_dict(narrow, state)
        places = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
        shared = [name for name, own in narrow.state_dict().items() if own.untyped_storage().data_ptr() in places]
        assert not shared


def test_prefix() -> None:
    wide, narrow = STAGES[1], copy.deepcopy(STAGES[0])
    prefixed = {f"model.net.{name}": tensor for name, tensor in wide.state_dict().items()}
    assert fpe.restore_structure(narrow, prefixed, prefix="model.net.")
    narrow.load_state_dict(wide.state_dict())
    assert equal(dict(narrow.state_dict()), dict(wide.state_dict()))


class Wrapped(nn.Module):
    """A module around the network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def test_the_hook_serves_load_state_dict_until_it_is_removed() -> None:
    wide, narrow = Wrapped(STAGES[2]), Wrapped(copy.deepcopy(STAGES[0]))
    handle = fpe.restore_structure_on_load(narrow)
    narrow.load_state_dict(wide.state_dict())
    assert equal(dict(narrow.state_dict()), dict(wide.state_dict()))
    handle.remove()
    with pytest.raises(RuntimeError, match="size mismatch"):
        narrow.load_state_dict(Wrapped(STAGES[0]).state_dict())


def test_the_hook_works_inside_of_another_module_and_survives_deepcopy() -> None:
    inner = copy.deepcopy(STAGES[0])
    fpe.restore_structure_on_load(inner)
    outer = copy.deepcopy(Wrapped(inner))
    outer.load_state_dict(Wrapped(STAGES[2]).state_dict())
    assert equal(dict(outer.state_dict()), dict(Wrapped(STAGES[2]).state_dict()))


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_models_train_on_load_and_hold_exact_zeros(use_buffers: bool) -> None:
    model = copy.deepcopy(STAGES[1])
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers)
    optimizer = AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        train(model, optimizer, X, steps=1)
        average.update_parameters(model)
    check_masks(average.module)
    assert record_of(average.module[0]) == record_of(model[0])
    assert torch.equal(mask_of(average.module[0]), mask_of(model[0]))
    narrow = AveragedModel(copy.deepcopy(STAGES[0]))
    fpe.load_expanded_state_dict(narrow, average.state_dict())
    assert equal(dict(narrow.state_dict()), dict(average.state_dict()))


def test_loading_keeps_parameters_that_fit_and_their_settings() -> None:
    model = copy.deepcopy(STAGES[0])
    model[0].weight.requires_grad_(False)
    kept = model[3].bias
    fpe.load_expanded_state_dict(model, STAGES[1].state_dict())
    assert model[3].bias is kept
    assert not model[0].weight.requires_grad
    assert model[0].bias.requires_grad


def test_a_model_that_was_never_split_is_left_alone() -> None:
    model = mlp(8, 4, 2)
    before = snapshot(model)
    assert not fpe.restore_structure(model, mlp(8, 5, 2).state_dict())
    assert equal(before, snapshot(model))


def broken(stage: int = 1, **changes: Any) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in STAGES[stage].state_dict().items()}
    for name, change in changes.items():
        key = name.replace("__", ".")
        if change is None:
            del state[key]
        else:
            state[key] = change
    return state


def without_attribute() -> Tensor:
    record = record_of(STAGES[1][0])
    assert record is not None
    return Record(record.shapes, record.splits, {"colour": [1, 2]}).encode()


CASES: list[tuple[dict[str, Tensor], str]] = [
    (broken(**{"0__weight": None}), "do not fit: `0.weight` was split in one and is missing in the other"),
    (
        broken(**{f"0__{RECORD}": torch.ones(9, dtype=torch.bool)}),
        rf"is broken: `0\.{RECORD}` of 9 bits is no expansion record",
    ),
    (
        broken(**{f"3__{RECORD}": torch.ones(9, dtype=torch.bool)}),
        rf"is broken: `3\.{RECORD}` of 9 bits is no expansion record",
    ),
    (
        broken(**{"0__fpe_mask_weight": torch.ones(3, 3, dtype=torch.bool)}),
        r"mask of `0.weight` is torch.bool \(3, 3\); it has",
    ),
    (broken(**{"0__fpe_mask_weight": torch.ones(8, 96)}), r"mask of `0.weight` is torch.float32 \(8, 96\); it has"),
    (broken(**{"0__weight": torch.zeros(7, 96)}), r"`0.weight` has shape \(7, 96\), but its record says \(8, 96\)"),
    (broken(**{f"0__{RECORD}": without_attribute()}), "`0.colour` grew there and is missing here"),
    (broken(**{f"0__{RECORD}": None}), r"of another network: `0.weight` had shape \(8, 96\) .* and \(4, 96\) here"),
]


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize(("state", "message"), CASES, ids=[message[:35] for _, message in CASES])
def test_what_does_not_fit_is_named_and_changes_nothing(state: dict[str, Tensor], message: str, target: int) -> None:
    model = copy.deepcopy(STAGES[target])
    if target == 0 and "another network" in message:
        # A narrow model has nothing to compare with; its own load_state_dict finds the shapes.
        assert not fpe.restore_structure(model, {k: v for k, v in state.items() if RECORD not in k and "mask" not in k})
        return
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        fpe.restore_structure(model, state)
    assert equal(before, snapshot(model))


def test_a_checkpoint_of_other_widths_is_named() -> None:
    wide = mlp(96, 5, 3, norm=True)
    fpe.expand(wide, alpha=2, example_inputs=X)
    model = copy.deepcopy(STAGES[0])
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"`0.weight` had shape \(5, 96\) there .* first split, and \(4, 96\) here"):
        fpe.load_expanded_state_dict(model, wide.state_dict())
    assert equal(before, snapshot(model))


def test_a_part_of_a_state_dict_loads_where_it_is_not_strict() -> None:
    model = copy.deepcopy(STAGES[1])
    before = copy.deepcopy(model)
    head = {name: tensor for name, tensor in STAGES[1].state_dict().items() if name.startswith("3.")}
    result = fpe.load_expanded_state_dict(model, head, strict=False)
    assert "0.weight" in result.missing_keys
    assert equal(dict(model.state_dict()), dict(before.state_dict()))


class Sliced(nn.Module):
    """Owns an integer that has to grow with a width, and no tensor of that width."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.first, self.last = nn.Linear(96, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh()[:, : self.width])


class Cut(nn.Module):
    """Has neither tensors nor children, and an integer that has to grow."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.width]


def with_integers() -> nn.Module:
    """Such modules inside of others."""
    return nn.Sequential(nn.Sequential(nn.Linear(96, 8), nn.Tanh()), Cut(), nn.Linear(8, 12), Reading12())


class Scaled(nn.Module):
    """Owns a per-unit value that no checkpoint holds, as the filters of a blurring layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale, self.last = nn.Linear(96, 8), nn.Module(), nn.Linear(8, 3)
        self.scale.register_buffer("by", torch.arange(8.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh() * self.scale.by)


class Reading12(Sliced):
    """The same behind a width of 12."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)


@pytest.mark.filterwarnings("ignore:Splitting")
@pytest.mark.parametrize("build", [Sliced, Scaled, with_integers])
def test_what_a_checkpoint_does_not_hold_follows(build: Callable[[], nn.Module]) -> None:
    narrow, wide = build(), build()
    fpe.expand(wide, alpha=2, example_inputs=X)
    stage = copy.deepcopy(wide)
    fpe.expand(wide, alpha=2, example_inputs=X)
    for saved, target in itertools.product((narrow, stage, wide), repeat=2):
        model = copy.deepcopy(target)
        fpe.load_expanded_state_dict(model, saved.state_dict())
        assert equal(dict(model.state_dict()), dict(saved.state_dict()))
        widths = [[getattr(module, "width", 0) for module in each.modules()] for each in (model, saved)]
        assert widths[0] == widths[1]
        assert torch.equal(model(X), saved(X))


def test_integers_stay_where_nothing_comes_in_for_them() -> None:
    model = nn.Sequential(Sliced(), nn.Linear(3, 2))
    fpe.expand(model, alpha=2, sites="0.first", example_inputs=X)
    head = {key: value for key, value in model.state_dict().items() if key.startswith("1.")}
    fpe.load_expanded_state_dict(model, head, strict=False)
    assert model[0].width == 16
    model(X)


def test_integers_of_another_network_are_refused() -> None:
    wide, other = Sliced(), Sliced()
    fpe.expand(wide, alpha=2, example_inputs=X)
    other.width = 7
    before = snapshot(other)
    with pytest.raises(ValueError, match="`width` was 8 there before its first split, and 7 here"):
        fpe.load_expanded_state_dict(other, wide.state_dict())
    assert equal(snapshot(other), before)


@pytest.mark.parametrize("broken", ["last.bias", "first.weight"])
@pytest.mark.parametrize("grown", [False, True], ids=["into narrow", "into wide"])
def test_a_model_is_as_before_where_loading_raises(grown: bool, broken: str) -> None:
    wide, model = Sliced(), Sliced()
    fpe.expand(wide, alpha=2, example_inputs=X)
    state = wide.state_dict()
    if grown:
        fpe.expand(model, alpha=3, example_inputs=X)
    if broken == "last.bias":  # missing: torch says so after it has loaded the rest
        del state[broken]
    else:  # too many: torch loads all others
        state = {**state, "extra": state[broken]}
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"Missing key|Unexpected key"):
        fpe.load_expanded_state_dict(model, state)
    assert equal(snapshot(model), before)
    model(X)


def test_layers_are_told_the_version_that_a_checkpoint_was_written_by() -> None:
    told = []

    class Versioned(nn.Linear):
        _version = 3

        def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *args: object) -> None:
            told.append(local_metadata.get("version"))
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    state = nn.Sequential(Versioned(4, 2)).state_dict()
    fpe.load_expanded_state_dict(nn.Sequential(Versioned(4, 2)), state)
    assert told == [3]
