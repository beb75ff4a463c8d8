"""Inside of ``expanded_checkpoints``, code that knows nothing of splits loads them, and nothing else changes."""

from __future__ import annotations

import copy
import functools
import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

import fpe_lightning as fpe
from fpe_lightning.checkpoints import loaders
from fpe_lightning.sparse import check_masks, pack_for_inference
from tests.support.nets import equal, mlp, snapshot, train

X = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
ORIGINAL = nn.Module.load_state_dict
LAYOUTS = {
    "masked": fpe.Paper(alpha=2),
    "grouped": fpe.Blocks(alpha=2, groups=4),
    "semi_structured": fpe.SemiStructured(),
}


@pytest.fixture(autouse=True)
def torch_is_as_before() -> Iterator[None]:
    yield
    assert nn.Module.load_state_dict is ORIGINAL


def narrow() -> nn.Sequential:
    return mlp(128, 64, 64)


def expanded(expansion: fpe.Expansion = LAYOUTS["masked"], net: Callable[[], nn.Module] = narrow) -> nn.Module:
    model = net()
    fpe.expand(model, expansion, example_inputs=X)
    train(model, AdamW(model.parameters(), lr=0.01), X)
    model.zero_grad()
    return model


class Wrapped(nn.Module):
    """A project's module around a network."""

    def __init__(self) -> None:
        super().__init__()
        self.model = narrow()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    check_masks(ours)
    return (
        equal(dict(ours.state_dict()), dict(theirs.state_dict()))
        and [type(each) for each in ours.modules()] == [type(each) for each in theirs.modules()]
        and torch.equal(ours(X), theirs(X))
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"strict": False}, {"assign": True}, {"strict": True, "assign": True}])
def test_any_call_of_load_state_dict(layout: str, options: dict[str, bool]) -> None:
    wide, model = expanded(LAYOUTS[layout]), narrow()
    with fpe.expanded_checkpoints():
        result = model.load_state_dict(wide.state_dict(), **options)
    assert result == ([], [])
    assert same(model, wide)


def test_a_wide_model_takes_narrow_weights() -> None:
    model, other = expanded(), narrow()
    with fpe.expanded_checkpoints():
        model.load_state_dict(other.state_dict())
    assert same(model, other)


def test_a_packed_model() -> None:
    wide, model = expanded(LAYOUTS["semi_structured"]).bfloat16(), narrow().bfloat16()
    pack_for_inference(wide)
    with fpe.expanded_checkpoints():
        model.load_state_dict(wide.state_dict())
    assert equal(dict(model.state_dict()), dict(wide.state_dict()))


def test_a_model_on_the_meta_device() -> None:
    for layout in LAYOUTS.values():
        wide = expanded(layout)
        with torch.device("meta"):
            model = narrow()
        with fpe.expanded_checkpoints():
            model.load_state_dict(wide.state_dict(), assign=True)
        assert same(model, wide)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("assign", [True, False])
def test_scripts_that_load_in_inference_mode(layout: str, assign: bool) -> None:
    wide, outside = expanded(LAYOUTS[layout]), narrow()
    with torch.inference_mode(), fpe.expanded_checkpoints():
        inside = narrow()
        for model in (inside, outside):
            model.load_state_dict(wide.state_dict(), assign=assign)
            assert torch.equal(model(X), wide(X))
            check_masks(model)


def test_a_default_device_does_not_matter() -> None:
    wide, model = expanded(LAYOUTS["grouped"]), narrow()
    with torch.device("meta"), fpe.expanded_checkpoints():  # stands for a GPU
        model.load_state_dict(wide.state_dict())
    assert same(model, wide)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def test_a_module_inside_and_each_child_alone() -> None:
    wide, inside, children = expanded(), Wrapped(), narrow()
    state = prefixed(wide.state_dict(), "model.")
    with fpe.expanded_checkpoints():
        inside.model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
        for name, child in children.named_children():
            child.load_state_dict({k[2:]: tensor for k, tensor in wide.state_dict().items() if k[0] == name})
    assert same(inside.model, wide)
    assert same(children, wide)


COMPILE = functools.partial(torch.compile, backend="eager")


@pytest.mark.parametrize("wrap", [AveragedModel, nn.DataParallel, COMPILE], ids=["average", "parallel", "compile"])
def test_wrappers_whose_names_have_a_prefix(wrap: Callable[[nn.Module], Any]) -> None:
    wide = expanded()
    saved = wrap(copy.deepcopy(wide)).state_dict()
    prefix = next(iter(saved)).split(".")[0]
    assert prefix in ("module", "_orig_mod", "n_averaged")
    model, target = narrow(), wrap(narrow())
    if isinstance(target, nn.DataParallel):
        target = AveragedModel(narrow())  # what has been given to several devices cannot change: see below
        saved["n_averaged"] = torch.tensor(0)
    with torch.no_grad():
        target(X)  # what is compiled for the narrow module must not be used for the wide one
    with fpe.expanded_checkpoints():
        target.load_state_dict(saved)
        stripped = {name.partition(".")[2]: tensor for name, tensor in saved.items() if "." in name}
        model.load_state_dict(stripped)
    assert same(model, wide)
    assert same(target.module if hasattr(target, "module") else target._orig_mod, wide)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.model."])
def test_a_prefix_too_many_or_too_few_is_named(prefix: str) -> None:
    wide, model = expanded(), narrow()
    before = snapshot(model)
    message = rf"begin with `{prefix}`, and those of Sequential do not: strip it with .*consume_prefix"
    with fpe.expanded_checkpoints():
        with pytest.raises(RuntimeError, match=message):
            model.load_state_dict(prefixed(wide.state_dict(), prefix))
        with pytest.warns(UserWarning, match=message):  # torch drops everything in silence
            model.load_state_dict(prefixed(wide.state_dict(), prefix), strict=False)
        with pytest.raises(RuntimeError, match=r"Names of Wrapped begin with `model.`, .* load into the module inside"):
            Wrapped().load_state_dict(wide.state_dict())
    assert equal(before, snapshot(model))


def test_loaders_that_try_one_form_of_names_after_the_other() -> None:
    wide, model = expanded(), narrow()
    state = prefixed(wide.state_dict(), "module.")
    with fpe.expanded_checkpoints():
        try:
            model.load_state_dict(state)
        except RuntimeError:
            model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    assert same(model, wide)


class Tied(nn.Module):
    """The last layer reads the weight of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.out, self.head = (nn.Linear(128, 64), *(nn.Linear(64, 64) for _ in range(3)))
        self.head = nn.Linear(64, 128, bias=False)
        self.embed.bias = None
        self.embed.weight = nn.Parameter(self.head.weight.detach().T.contiguous())
        self.again = nn.Linear(128, 64, bias=False)
        self.again.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.out(self.hidden(self.embed(x) + self.again(x)).relu()))


@pytest.mark.parametrize("strict", [True, False])
def test_tied_weights_of_which_a_file_holds_one_name(strict: bool) -> None:
    wide, model = expanded(net=Tied), Tied()
    state = wide.state_dict()
    del state["again.weight"]
    with fpe.expanded_checkpoints():
        missing, unexpected = model.load_state_dict(state, strict=strict)
    assert (missing, unexpected) == ([] if strict else ["again.weight"], [])
    assert model.again.weight is model.embed.weight
    assert same(model, wide)
    again = Tied()
    fpe.load_expanded_state_dict(again, state)
    assert same(again, wide)


def test_an_optimizer_that_was_built_before_trains_what_was_loaded() -> None:
    """Most scripts build model and optimizer, and load both."""
    saved, model = expanded(), narrow()
    theirs, ours = (AdamW(each.parameters(), lr=0.01, weight_decay=0.1) for each in (saved, model))
    train(saved, theirs, X)
    with fpe.expanded_checkpoints():
        model.load_state_dict(copy.deepcopy(saved.state_dict()))
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert all(a is b for a, b in zip(ours.param_groups[0]["params"], model.parameters(), strict=True))
    for net, optimizer in ((saved, theirs), (model, ours)):
        train(net, optimizer, X)
    assert same(model, saved)


def test_a_model_whose_graph_is_alive_gets_new_parameters() -> None:
    saved, model = expanded(), narrow()
    loss = model(X).sum()
    with (
        fpe.expanded_checkpoints(),
        pytest.warns(UserWarning, match=r"`0.weight` is a new parameter, as a graph or Dist"),
    ):
        model.load_state_dict(saved.state_dict())
    model(X).sum().backward()
    loss.backward()
    model.zero_grad()
    assert same(model, saved)


def test_what_was_never_split_loads_as_always(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = narrow(), mlp(128, 64, 64, seed=1)
    monkeypatch.setattr("fpe_lightning.checkpoints.loaders.load_into", None)
    with fpe.expanded_checkpoints():
        assert model.load_state_dict(other.state_dict()) == ([], [])
        with pytest.raises(RuntimeError, match=r"size mismatch for 0.weight"):
            model.load_state_dict(mlp(128, 32, 64).state_dict())
        with pytest.raises(TypeError, match="dict-like"):
            model.load_state_dict([])
    assert torch.equal(model[0].weight, other[0].weight)


def test_it_ends_with_the_block_also_after_an_exception() -> None:
    wide = expanded()
    with pytest.raises(KeyError), fpe.expanded_checkpoints():
        raise KeyError
    with fpe.expanded_checkpoints():
        with fpe.expanded_checkpoints():
            pass
        narrow().load_state_dict(wide.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        narrow().load_state_dict(wide.state_dict())


def test_a_switch_stays_on_where_nobody_keeps_it() -> None:
    fpe.expanded_checkpoints(always=True)
    try:
        gc.collect()
        narrow().load_state_dict(expanded().state_dict())
    finally:
        loaders._end_always()


def in_thread(call: Callable[[], Any]) -> list[Any]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except RuntimeError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found


def test_other_threads_are_not_concerned_unless_it_is_for_all() -> None:
    state = expanded().state_dict()
    with fpe.expanded_checkpoints():
        (found,) = in_thread(lambda: narrow().load_state_dict(state))
        assert "size mismatch" in str(found)
    switch = fpe.expanded_checkpoints(always=True)
    assert in_thread(lambda: narrow().load_state_dict(state)) == [([], [])]
    narrow().load_state_dict(state)
    switch.close()
    with pytest.raises(RuntimeError, match="size mismatch"):
        narrow().load_state_dict(state)


def test_somebody_else_who_patches_meanwhile_is_left_alone() -> None:
    state, calls = expanded().state_dict(), []
    block = fpe.expanded_checkpoints()
    block.__enter__()
    inner = nn.Module.load_state_dict

    def theirs(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(type(self))
        return inner(self, *args, **kwargs)

    nn.Module.load_state_dict = theirs
    try:
        narrow().load_state_dict(state)
        block.__exit__(None, None, None)
        assert nn.Module.load_state_dict is theirs
        with pytest.raises(RuntimeError, match="size mismatch"):
            narrow().load_state_dict(state)
        with fpe.expanded_checkpoints():
            narrow().load_state_dict(state)
        assert calls == [nn.Sequential] * 3
    finally:
        nn.Module.load_state_dict = ORIGINAL


@pytest.mark.parametrize("strict", [True, False])
def test_what_does_not_fit_is_refused_in_one_sentence_and_changes_nothing(strict: bool) -> None:
    model = mlp(128, 32, 64)
    before = snapshot(model)
    message = r"^The checkpoint is of another network: `0.weight` had shape \(64, 128\) there .* and \(32, 128\) here"
    with fpe.expanded_checkpoints(), pytest.raises(RuntimeError, match=message) as caught:
        model.load_state_dict(expanded().state_dict(), strict=strict)
    assert "\n" not in str(caught.value)
    assert equal(before, snapshot(model))


def test_nothing_is_half_changed_where_torch_refuses() -> None:
    model = narrow()
    train(model, AdamW(model.parameters()), X)
    before, held = snapshot(model), list(model.parameters())
    state = expanded().state_dict()
    with fpe.expanded_checkpoints(), pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**state, "extra": X})
    assert equal(before, snapshot(model))
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))


def test_scripted_and_parallel_modules_are_refused() -> None:
    state = expanded().state_dict()
    scripted = torch.jit.script(nn.Sequential(narrow()))
    with fpe.expanded_checkpoints():
        with pytest.raises(RuntimeError, match="is scripted already: load the weights first"):
            scripted.load_state_dict(prefixed(state, "0."))
        with pytest.raises(RuntimeError, match="is wrapped for data parallelism already: load the weights first"):
            nn.DataParallel(narrow()).load_state_dict(prefixed(state, "module."))


class Own(nn.Module):
    """Loads in a way of its own: renames, and keeps a network where ``state_dict`` does not look."""

    def __init__(self) -> None:
        super().__init__()
        self.net = narrow()
        self.hidden = [narrow()]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.hidden[0](x)

    def get_extra_state(self) -> dict[str, Tensor]:
        return self.hidden[0].state_dict()

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self.hidden[0].load_state_dict(state)

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict({k.replace("old.", "net."): v for k, v in state_dict.items()}, strict=strict)


def test_modules_that_load_in_a_way_of_their_own() -> None:
    wide, model = Own(), Own()
    wide.net, wide.hidden = expanded(), [expanded()]
    state = {name.replace("net.", "old."): value for name, value in wide.state_dict().items()}
    with fpe.expanded_checkpoints():
        model.load_state_dict(state)
    assert same(model.net, wide.net)
    assert same(model.hidden[0], wide.hidden[0])


def choosy() -> type[nn.Module]:
    """A class whose own ``load_state_dict`` drops what has another shape, as segmentation_models_pytorch has it."""

    class Choosy(Wrapped):
        def load_state_dict(self, state_dict: Any, strict: bool = True, **kwargs: Any) -> Any:
            own = self.state_dict()
            state_dict = {k: v for k, v in state_dict.items() if k not in own or own[k].shape == v.shape}
            return super().load_state_dict(state_dict, strict=strict, **kwargs)

    return Choosy


def test_classes_that_drop_other_shapes_whenever_they_are_made() -> None:
    wide, before = expanded(net=choosy()), choosy()
    with fpe.expanded_checkpoints():
        for cls in (before, choosy()):
            model = cls()
            model.load_state_dict(wide.state_dict(), strict=False)
            assert torch.equal(model(X), wide(X))
            assert hasattr(cls.load_state_dict, "fpe_patched")
    assert not hasattr(before.load_state_dict, "fpe_patched")
    assert "__init_subclass__" not in vars(nn.Module)


def test_weights_that_fabric_reads_lazily(tmp_path: Path) -> None:
    from lightning.fabric.utilities.load import _lazy_load

    for layout in LAYOUTS.values():
        wide, model = expanded(layout), narrow()
        torch.save(wide.state_dict(), tmp_path / "lazy.pt")
        with fpe.expanded_checkpoints():
            model.load_state_dict(_lazy_load(tmp_path / "lazy.pt"))
        assert same(model, wide)


def test_loaders_that_drop_what_the_narrow_module_has_not(tmp_path: Path) -> None:
    """Nothing can be seen of a split in what arrives; the file still says it."""
    wide, model = expanded(), narrow()
    torch.save({"state_dict": wide.state_dict()}, tmp_path / "last.ckpt")

    def load() -> None:
        state, own = wide.state_dict(), model.state_dict()
        fitting = {name: each for name, each in state.items() if name in own and each.shape == own[name].shape}
        model.load_state_dict(fitting, strict=False)

    with fpe.expanded_checkpoints():
        load()
        assert model[0].out_features == 64
        fpe.restore_structure_from_file(model, tmp_path / "last.ckpt")
        load()
    assert same(model, wide)


def test_whole_modules_need_no_loader(tmp_path: Path) -> None:
    for layout in LAYOUTS.values():
        wide = expanded(layout)
        torch.save(wide, tmp_path / "model.pt")
        assert same(torch.load(tmp_path / "model.pt", weights_only=False), wide)
