"""Masked entries stay zero, for every reader and every optimizer, and counts are true."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, prune
from two_processes import joined, states_of_both

import fpe_lightning as fpe
from fpe_lightning.sparse import MaskWarning, check_masks, mask_of, masked_parameters
from fpe_lightning.sparse.guard import hooks_of, is_guarded, masked, zero_masked_
from fpe_lightning.sparse.masked import set_mask

X = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two layers, the first of which is called, or read."""

    def __init__(self, reads: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.reads = nn.Linear(64, 16), nn.Linear(16, 3), reads

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.a.weight, self.a.bias) if self.reads else self.a(x)
        out: Tensor = self.b(F.relu(hidden))
        return out


def split(net: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Split, and return the number of non-zeros."""
    return fpe.expand(net, fpe.Paper(), optimizer=optimizer, example_inputs=X).nonzeros_after


def really(net: nn.Module) -> int:
    return sum(int(parameter.count_nonzero()) for parameter in net.parameters())


def penalty(net: nn.Module) -> Tensor:
    weight = net.get_submodule("a").get_parameter("weight")
    return (weight @ weight.T - torch.eye(len(weight))).square().sum()


def step(net: nn.Module, optimizer: torch.optim.Optimizer, extra: Callable[[nn.Module], Tensor] | None = None) -> None:
    optimizer.zero_grad()
    loss = net(X).square().mean()
    (loss if extra is None else loss + 0.01 * extra(net)).backward()
    optimizer.step()


def plain() -> Net:
    return Net()


def read_by_parent() -> Net:
    return Net(reads=True)


def wrapped() -> Net:
    net = Net()
    forward = net.a.forward
    net.a.forward = lambda *args: forward(*args)  # type: ignore[method-assign]
    return net


@pytest.mark.parametrize("extra", [None, penalty])
@pytest.mark.parametrize("make", [plain, read_by_parent, wrapped])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Rprop])
def test_whoever_reads_the_weight(
    make: Callable[[], Net], extra: Callable[[nn.Module], Tensor] | None, optimizer: type[torch.optim.Optimizer]
) -> None:
    net = make()
    optimizers = optimizer(net.parameters(), lr=0.01)
    step(net, optimizers, extra)
    nonzeros = split(net, optimizers)
    for _ in range(3):
        step(net, optimizers, extra)
        assert really(net) == nonzeros == fpe.count_nonzeros(net)


class Restless(torch.optim.SGD):
    """Moves every entry, also zeros."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        return loss


@pytest.mark.parametrize("told", [True, False])
def test_an_optimizer_that_moves_zeros(told: bool) -> None:
    net = Net()
    optimizer = Restless(net.parameters(), lr=0.01)
    nonzeros = split(net, optimizer if told else None)
    for each in (optimizer, copy.deepcopy(optimizer)) if told else (Restless(net.parameters(), lr=0.01),):
        each.param_groups[0]["params"] = list(net.parameters())
        step(net, each)
        assert really(net) == nonzeros


OTHERS = (
    *("adabelief", "adamp", "adan", "adanorm", "apollo", "dadaptadagrad", "diffgrad", "fromage", "lamb", "lion"),
    *("madgrad", "nero", "novograd", "pid", "prodigy", "qhadam", "ranger", "scion", "sgdp", "tiger", "vsgd", "yogi"),
)


@pytest.mark.parametrize("name", OTHERS)
def test_optimizers_of_others_in_a_plain_loop(name: str) -> None:
    others = pytest.importorskip("pytorch_optimizer")
    net = Net()
    optimizer = others.load_optimizer(name)(net.parameters(), lr=1e-3)
    step(net, optimizer)
    nonzeros = split(net, optimizer)
    for _ in range(3):
        step(net, optimizer)
    assert all(bool(parameter.isfinite().all()) for parameter in net.parameters())
    check_masks(net)
    assert really(net) <= nonzeros == fpe.count_nonzeros(net)


def test_gradients_that_are_edited_before_the_step() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    nonzeros = split(net, optimizer)
    for edit in (True, True, False):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        assert not net.a.weight.grad[~mask_of(net.a)].any()
        if edit:
            net.a.weight.grad.sub_(net.a.weight.grad.mean(1, keepdim=True))
        optimizer.step()
        assert really(net) == nonzeros  # momentum remembers the edits after they end


def test_gradients_by_autograd_grad_and_clipping_see_masked_ones() -> None:
    net = Net(reads=True)
    split(net)
    mask = mask_of(net.a)
    (grad,) = torch.autograd.grad(net(X).square().mean(), [net.a.weight])
    assert not grad[~mask].any()
    (grad,) = torch.autograd.grad(net(X).square().mean(), [net.a.weight], create_graph=True)
    grad.square().sum().backward()
    assert not net.a.weight.grad[~mask].any()


def through_deepcopy(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net)


def through_pickle(net: nn.Module) -> nn.Module:
    twin: nn.Module = pickle.loads(pickle.dumps(net))
    return twin


def through_a_file(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    twin: nn.Module = torch.load(file, weights_only=False)
    return twin


def through_other_dtypes(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).half().double().float()


def through_the_meta_device(net: nn.Module) -> nn.Module:
    twin = copy.deepcopy(net).to("meta").to_empty(device="cpu")
    twin.load_state_dict(net.state_dict())
    return twin


def through_an_assigned_state_dict(net: nn.Module) -> nn.Module:
    twin = copy.deepcopy(net)
    twin.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    return twin


def through_a_narrow_model(net: nn.Module) -> nn.Module:
    twin = Net(reads=True)
    fpe.load_expanded_state_dict(twin, net.state_dict())
    return twin


def through_a_second_split(net: nn.Module) -> nn.Module:
    twin = copy.deepcopy(net)
    split(twin)
    return twin


def through_freezing(net: nn.Module) -> nn.Module:
    twin = copy.deepcopy(net).requires_grad_(False)
    return copy.deepcopy(twin).requires_grad_(True)


THROUGH = [value for name, value in list(globals().items()) if name.startswith("through_")]


@pytest.mark.parametrize("through", THROUGH)
def test_hooks_survive(through: Callable[[nn.Module], nn.Module]) -> None:
    net = Net(reads=True)
    nonzeros = split(net)
    twin = through(net)
    step(twin, Restless(twin.parameters(), lr=0.1))
    assert really(twin) == nonzeros
    twin.zero_grad()
    twin(X).square().mean().backward()
    for name, parameter, mask in masked_parameters(twin):
        assert len(list(hooks_of(parameter))) == 1, name
        assert not parameter.grad[~mask].any()


def test_frozen_weights_are_guarded_when_they_are_trained_later() -> None:
    net = Net(reads=True)
    net.a.weight.requires_grad_(False)
    nonzeros = fpe.expand(net, fpe.Paper(), sites="a", example_inputs=X).nonzeros_after
    assert not net.a.weight.requires_grad
    net.requires_grad_(True)
    step(net, torch.optim.AdamW(net.parameters()))
    assert really(net) == nonzeros


def test_hooks_of_users_stay() -> None:
    net, seen = Net(), []
    handle = net.a.weight.register_hook(lambda grad: seen.append(grad.shape))
    split(net)
    net(X).sum().backward()
    handle.remove()
    net(X).sum().backward()
    assert seen == [net.a.weight.shape]
    assert is_guarded(net.a.weight)


@pytest.mark.parametrize("reads", [False, True])
def test_compiled_models_and_steps(reads: bool) -> None:
    net = Net(reads)
    nonzeros = split(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    optimizer = Restless(net.parameters(), lr=0.1)
    for _ in range(2):
        step(compiled, optimizer)
        assert really(net) == nonzeros
    net.zero_grad()
    compiled(X).sum().backward()
    assert not net.a.weight.grad[~mask_of(net.a)].any()


def test_functional_calls_are_masked() -> None:
    net = Net()
    split(net)
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in net.named_parameters()}
    torch.func.functional_call(net, weights, (X,)).sum().backward()
    assert not weights["a.weight"].grad[~mask_of(net.a)].any()


def test_averages_in_a_loop_are_zero_when_they_are_read() -> None:
    net = Net()
    split(net)
    teacher = copy.deepcopy(net).requires_grad_(False)
    student = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)  # masked entries too
        for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
            ours.lerp_(theirs, 0.5)
    teacher(X)
    check_masks(teacher)


def test_counts_say_what_is_there() -> None:
    net = Net()
    nonzeros = split(net)
    net.a.weight.data.view(-1)[(~mask_of(net.a)).flatten().nonzero()[:5]] = 1.0
    with pytest.warns(MaskWarning, match=r"5 masked entries of `a\.weight` are not zero: something wrote .*fpe\.merge"):
        assert fpe.count_nonzeros(net) == nonzeros + 5 == really(net)
    with pytest.raises(RuntimeError, match=r"5 masked entries of `a\.weight` are not zero"):
        check_masks(net)
    assert split(net) == nonzeros  # a split starts from the masks
    check_masks(net)


@pytest.mark.parametrize("keep", ["outputs", "masks"])
def test_merging(keep: str) -> None:
    net = Net()
    nonzeros = split(net)
    net.a.weight.data.add_(0.1)
    expected = F.linear(X, net.a.weight, net.a.bias)
    assert fpe.merge(net, keep=keep) is net
    check_masks(net)
    if keep == "outputs":
        assert torch.equal(net.a(X), expected)
        assert type(net.a) is nn.Linear
        assert fpe.count_nonzeros(net) == really(net) > nonzeros
    else:
        assert fpe.count_nonzeros(net) == nonzeros
    with pytest.raises(ValueError, match=r'`keep` has to be "outputs" or "masks", found \'all\''):
        fpe.merge(net, keep="all")


def test_a_copy_of_a_merged_model_computes_the_same() -> None:
    net = Net()
    split(net)
    net.a.weight.data.add_(0.1)
    expected = net(X)
    for twin in (copy.deepcopy(net), through_a_file(net)):
        assert torch.equal(twin(X), expected)
        with pytest.warns(MaskWarning):
            fpe.count_nonzeros(twin)


@pytest.mark.parametrize("blocks", [False, True])
def test_adapters_of_peft_are_merged(blocks: bool) -> None:
    peft = pytest.importorskip("peft")
    net = Net()
    expansion = fpe.Blocks(groups=4) if blocks else fpe.Paper()
    nonzeros = fpe.expand(net, expansion, example_inputs=X).nonzeros_after
    config = peft.LoraConfig(r=2, target_modules=["a"], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(net), config)
    outputs = adapted(X)
    merged = fpe.merge(copy.deepcopy(adapted))
    torch.testing.assert_close(merged(X), outputs, atol=1e-5, rtol=1e-4)
    assert fpe.count_nonzeros(merged) == really(merged)
    kept = fpe.merge(adapted, keep="masks")
    assert fpe.count_nonzeros(kept) == really(kept) == nonzeros


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_norms_that_are_put_on_later(norm: Callable[[nn.Module], nn.Module]) -> None:
    net = Net()
    split(net)
    mask = mask_of(net.a)
    norm(net.a)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(3):
        step(net, optimizer)
    net(X)
    assert not net.a.weight[~mask].any()
    assert [name for name, _, _ in masked_parameters(net) if name.startswith("a.")]
    check_masks(net)


def test_torchs_prune_after_a_split() -> None:
    net = Net()
    nonzeros = split(net)
    prune.l1_unstructured(net.a, "weight", 0.9)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step(net, optimizer)
    assert int(net.a.weight.count_nonzero()) <= 0.1 * net.a.weight.numel() + 1
    prune.remove(net.a, "weight")
    for _ in range(2):
        step(net, optimizer)
    check_masks(net)
    assert really(net) <= nonzeros == fpe.count_nonzeros(net)


def test_torchs_prune_before_a_split_is_named() -> None:
    net = Net()
    prune.l1_unstructured(net.a, "weight", 0.5)
    with pytest.raises(ValueError, match=r"a pruned or normalized weight is computed from it; call torch's `pru"):
        split(net)


def worker(rank: int, port: int, folder: str) -> None:
    with joined(rank, port):
        torch.set_num_threads(1)
        net = Net(reads=True)
        split(net)
        wrapped = DistributedDataParallel(net)
        wrapped(X[16 * rank : 16 * rank + 16]).square().mean().backward()
        assert not net.a.weight.grad[~mask_of(net.a)].any()
        Restless(net.parameters(), lr=0.1)
        torch.optim.AdamW(net.parameters()).step()
        torch.save(net.state_dict(), Path(folder, f"{rank}.pt"))


@pytest.mark.slow
def test_processes_stay_equal(tmp_path: Path) -> None:
    first, second = states_of_both(worker, tmp_path)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not first["a.weight"][~first["a.fpe_mask_weight"]].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(700, 300), (3, 2**17), (64, 16, 3, 3), (5,), (0, 4), ()])
def test_masked_copies_are_what_where_gives(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.randn(shape).to(dtype)
    mask = torch.rand(shape) > 0.5
    bad = tensor.masked_fill(~mask, torch.inf)
    for each in (tensor, bad, bad.masked_fill(~mask, torch.nan)):
        expected = torch.where(mask, each, 0)
        assert torch.equal(masked(each, mask), expected)
        if len(shape) == 4:
            last = each.to(memory_format=torch.channels_last)
            assert torch.equal(masked(last, mask), expected)
            zero_masked_(last, mask)
            assert torch.equal(last, expected)
        zero_masked_(each, mask)
        assert torch.equal(each, expected)


def test_gradients_of_gradients_and_of_batches_are_masked() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 128)
    mask = torch.rand(128, 64) > 0.5
    set_mask(layer, "weight", mask)
    layer.weight.data *= mask
    out = layer(torch.randn(4, 64)).tanh()
    (first,) = torch.autograd.grad(out.sum(), layer.weight, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), layer.weight)
    out = layer(torch.randn(4, 64)).flatten()[:3]
    (rows,) = torch.autograd.grad(out, layer.weight, torch.eye(3), is_grads_batched=True)
    for grad in (first, second, *rows):
        assert grad.count_nonzero() > 0
        assert not grad[~mask].any()
