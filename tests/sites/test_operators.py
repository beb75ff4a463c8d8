"""The tracer learns operators from outside of the package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.sites.tracing import Call, register_operator, rule
from fpe_lightning.sites.tracing.operators import RULES
from tests.support.nets import Net, proven, reasons, train


@torch.library.custom_op("fpe_tests::wavy", mutates_args=())
def wavy(x: Tensor) -> Tensor:
    return x + x.sin()


wavy.register_fake(torch.empty_like)
wavy.register_autograd(
    lambda ctx, grad: grad * (1 + ctx.saved_tensors[0].cos()),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@torch.library.custom_op("fpe_tests::mul", mutates_args=())
def mul(x: Tensor) -> Tensor:
    """Named as an operator of ATen, but something else: it turns the features around."""
    return x.flip(-1)


mul.register_fake(torch.empty_like)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(RULES, "_found", dict(RULES._found))
        yield


def net(operator: Any) -> Net:
    return Net(lambda self, x: self.b(operator(self.a(x))), a=nn.Linear(16, 8), b=nn.Linear(8, 3))


def test_an_unknown_operator_ends_the_site_and_not_the_run() -> None:
    assert fpe.find_sites(net(wavy), torch.randn(4, 16)) == []
    assert reasons(net(wavy), torch.randn(4, 16))["a"] == "unknown operator fpe_tests::wavy"


def test_a_bare_name_is_that_of_aten_alone() -> None:
    assert reasons(net(mul), torch.randn(4, 16))["a"] == "unknown operator fpe_tests::mul"


def as_rule() -> None:
    @rule("fpe_tests::wavy")
    def entries_stay(call: Call) -> None:
        call.emit(call.labels(call.input))


@pytest.mark.parametrize(
    "register", [lambda: register_operator("fpe_tests::wavy", like="pointwise"), as_rule], ids=["like", "rule"]
)
def test_a_registered_operator_is_traced_expanded_and_trained(register: Any) -> None:
    register()
    model, x = net(wavy), torch.randn(32, 16)
    (site,) = proven(model, x)
    assert (site.name, site.width, site.linear) == ("a", 8, False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    train(model, optimizer, x)
    report = fpe.expand(model, example_inputs=x, optimizer=optimizer)
    assert report.nonzeros_before == report.nonzeros_after == fpe.count_nonzeros(model)
    assert model.a.out_features == 16
    train(model, optimizer, x)
    assert fpe.count_nonzeros(model) == report.nonzeros_before


def test_a_taken_name_is_refused() -> None:
    register_operator("fpe_tests::wavy", like="pointwise")
    with pytest.raises(ValueError, match="The traced operator 'fpe_tests::wavy' is registered already"):
        register_operator("fpe_tests::wavy", like="pointwise")
    with pytest.raises(ValueError, match="The traced operator 'mm' is registered already"):
        rule("mm")(lambda call: None)
    with pytest.raises(ValueError, match=r"Unknown traced operator 'sofmax'\. Did you mean 'softmax'"):
        register_operator("fpe_tests::mul", like="sofmax")


def test_a_rule_that_fails_ends_the_site_and_not_the_run() -> None:
    @rule("fpe_tests::wavy")
    def broken(call: Call) -> None:
        raise KeyError("no")

    assert reasons(net(wavy), torch.randn(4, 16))["a"] == "unknown form of fpe_tests::wavy (KeyError)"
    both = Net(
        lambda self, x: self.d(F.relu(self.c(self.b(wavy(self.a(x)))))),
        a=nn.Linear(16, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 5), d=nn.Linear(5, 2),
    )  # fmt: skip
    assert [site.name for site in fpe.find_sites(both, torch.randn(4, 16))] == ["b", "c"]
