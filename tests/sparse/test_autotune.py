"""The layout that the clock prefers is taken, told, remembered, and recorded where a run that resumes finds it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.partitions import Shared
from fpe_lightning.sparse import (
    GroupedLinear,
    autotune,
    dense_mask,
    is_semi_structured,
    store,
    structure_of,
    tune,
)
from fpe_lightning.sparse.choices import ChoiceFile
from fpe_lightning.sparse.timing import measure
from tests.support.stand_ins_of_kernels import kernels_on_cpu

Clock = Callable[..., None]
TWO_GROUPS = Shared(groups=2)
SEMI_STRUCTURED = "fpe_lightning.sparse.semi_structured.layout"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Sets what each layout takes, and forgets what was chosen before."""
    ChoiceFile().path.unlink(missing_ok=True)

    def set_clock(**times: float) -> None:
        def measured(layers: Mapping[str, nn.Module], reads: Any, training: bool) -> dict[str, float]:
            set_clock.calls.append((sorted(layers), reads, training))  # type: ignore[attr-defined]
            return {name: times.get(name, 9.0) for name in layers}

        monkeypatch.setattr(autotune, "measure", measured)

    set_clock.calls = []  # type: ignore[attr-defined]
    yield set_clock
    ChoiceFile().path.unlink(missing_ok=True)


def mlp() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4)), torch.randn(16, 128)


def split(layout: str = "auto", partition: Any = TWO_GROUPS, seed: int = 0) -> tuple[nn.Sequential, Any]:
    model, x = mlp()
    expansion = fpe.Expansion(alpha=2, partition=partition, prune="columns", layout=layout, seed=seed)
    return model, fpe.expand(model, expansion, example_inputs=x)


def test_the_fastest_is_taken_and_told(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    clock(masked=2.0, grouped=1.0)
    with caplog.at_level(logging.INFO):
        model, report = split()
    assert isinstance(model[0], GroupedLinear)
    assert report.layouts == {"0": "grouped (grouped 1000.000 ms, masked 2000.000 ms)"}
    assert "layout of 0: grouped" in str(report)
    assert "layout of 128 x 128 weight: grouped (grouped 1000.000 ms" in caplog.text
    assert clock.calls == [(["grouped", "masked"], (16, 128), True)]


@pytest.mark.parametrize("times", [{"masked": 1.0, "grouped": 2.0}, {"masked": 1.0, "grouped": 0.99}])
def test_masked_stays_where_nothing_is_clearly_faster(clock: Clock, times: dict[str, float]) -> None:
    clock(**times)
    model, report = split()
    assert structure_of(model[0]) is None
    assert report.layouts["0"].startswith("masked (")


def test_the_choice_is_remembered(clock: Clock) -> None:
    clock(masked=2.0, grouped=1.0)
    first, _ = split()
    clock(masked=1.0, grouped=2.0)
    second, _ = split(seed=1)  # another draw of the same shape takes the same time
    assert len(clock.calls) == 1
    assert isinstance(second[0], GroupedLinear)
    assert not torch.equal(second[0].fpe_blocks, first[0].fpe_blocks)
    split("auto", Shared(groups=4))
    assert len(clock.calls) == 2


def test_times_decide_on_storage_and_on_nothing_else(clock: Clock) -> None:
    models = []
    for times in ({"masked": 2.0, "grouped": 1.0}, {"masked": 1.0, "grouped": 2.0}):
        ChoiceFile().path.unlink(missing_ok=True)
        clock(**times)
        models.append(split()[0])
    masks = [dense_mask(model[0]) for model in models]
    assert torch.equal(*masks)
    torch.testing.assert_close(*(model(mlp()[1]) for model in models))


def test_a_model_that_is_loaded_computes_as_recorded_and_is_not_timed(clock: Clock) -> None:
    clock(masked=2.0, grouped=1.0)
    model, _ = split()
    clock(masked=1.0, grouped=2.0)
    fresh, x = mlp()
    fpe.load_expanded_state_dict(fresh, model.state_dict())
    assert isinstance(fresh[0], GroupedLinear)
    assert torch.equal(fresh(x), model(x))
    assert len(clock.calls) == 1


def test_nothing_is_timed_unless_asked_for(clock: Clock) -> None:
    clock()
    model, x = mlp()
    fpe.expand(model, example_inputs=x)
    split("masked")
    split("grouped")
    assert clock.calls == []


def test_evaluation_mode_times_forward_passes(clock: Clock) -> None:
    clock(masked=2.0, grouped=1.0)
    model, x = mlp()
    fpe.expand(
        model.eval(), fpe.Expansion(alpha=2, partition="shared", prune="columns", layout="auto"), example_inputs=x
    )
    assert clock.calls[0][2] is False


def test_semi_structured_is_a_candidate_where_there_are_kernels(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock(masked=2.0, semi_structured=1.0)
    with caplog.at_level(logging.INFO):
        model, _ = split("auto", "semi_structured")
    assert not any("semi_structured" in call[0] for call in clock.calls)  # a CPU has no kernels
    assert "semi_structured of 128 x 128 weight is left out: there are no 2:4 kernels, a cpu has none" in caplog.text
    assert not is_semi_structured(model[0])
    with kernels_on_cpu("cutlass"):
        monkeypatch.setattr(f"{SEMI_STRUCTURED}.no_kernel", lambda device: None)
        model, _ = split("auto", "semi_structured")
        assert is_semi_structured(model[0])


def test_tune_changes_the_layout_of_a_trained_model_and_not_what_it_computes(clock: Clock) -> None:
    model, x = mlp()
    fpe.expand(
        model, fpe.Expansion(alpha=2, partition=Shared(groups=2), prune="columns", layout="grouped"), example_inputs=x
    )
    optimizer = torch.optim.AdamW(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    expected = model(x).detach()
    clock(masked=1.0, grouped=2.0)
    choices = tune(model.eval(), x[:1], optimizers=[optimizer])
    assert choices["0"].layout == "masked"
    assert clock.calls[-1][1:] == ((1, 128), False)
    assert structure_of(model[0]) is None
    torch.testing.assert_close(model(x), expected)
    assert optimizer.state[model[0].weight]["exp_avg"].shape == (128, 128)
    clock(masked=2.0, grouped=1.0)
    assert tune(model, (x[:3],), optimizers=[optimizer])["0"].layout == "grouped"
    torch.testing.assert_close(model(x), expected)


def test_real_times_leave_the_layer_and_the_random_numbers_alone() -> None:
    model, _ = split("grouped")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    masked = copy.deepcopy(model[0])
    store(masked)
    times = measure({"masked": masked, "grouped": copy.deepcopy(model[0])}, (8, 128), training=True)
    assert times.keys() == {"masked", "grouped"}
    assert all(seconds > 0 for seconds in times.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_layout_that_cannot_hold_the_structure_costs_a_line(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    clock()
    with caplog.at_level(logging.INFO):
        model, _ = split("auto", "random")
    assert [call[0] for call in clock.calls] == [["folded", "masked"]]
    assert structure_of(model[0]) is None
    assert 'leaves out "grouped" for 0: `0.weight` cannot be stored in blocks: its 128 neurons have' in caplog.text
    assert 'leaves out "semi_structured" for 0: `0.weight` cannot be stored in 2:4 form: row' in caplog.text


def test_a_gpu_without_kernels_costs_a_line(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    clock()
    with (
        caplog.at_level(logging.INFO),
        patch(f"{SEMI_STRUCTURED}.asks_a_gpu", lambda device: True),
        patch(f"{SEMI_STRUCTURED}.no_kernel", lambda device: "they need compute capability 8.0"),
    ):
        model, _ = split("auto", "semi_structured")
    assert not is_semi_structured(model[0])
    assert "cannot be stored in 2:4 form: this GPU cannot run the kernels: they need compute cap" in caplog.text


def test_a_dtype_without_kernels_costs_a_line(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(autotune, "measure", measure)
    monkeypatch.setattr(f"{SEMI_STRUCTURED}.no_kernel", lambda device: None)
    with kernels_on_cpu("cutlass"), caplog.at_level(logging.INFO):
        model, report = split("auto", "semi_structured")  # float32, and no autocast
    assert not is_semi_structured(model[0])
    assert report.layouts["0"].startswith("masked")
    assert "left out: The 2:4 kernels multiply in float16 or bfloat16, found torch.float32" in caplog.text


def test_a_layer_of_unknown_inputs_stays_masked_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = split("grouped")
    with caplog.at_level(logging.INFO):
        choices = autotune.choose_fastest(model, {"0": autotune.storages_of(model[0])}, {})
    assert choices["0"].layout == "masked"
    assert "layout of 0 stays masked: it is not known what the layer reads" in caplog.text


def test_tune_takes_what_wins_in_the_precision_of_the_run(clock: Clock) -> None:
    model, x = mlp()
    fpe.expand(
        model, fpe.Expansion(alpha=2, partition=Shared(groups=2), prune="columns", layout="grouped"), example_inputs=x
    )
    model.eval()
    clock(masked=1.0, grouped=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert tune(model, x)["0"].layout == "masked"
    clock(masked=2.0, grouped=1.0)
    assert tune(model, x)["0"].layout == "grouped"  # timed again: the other choice was one for bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert tune(model, x)["0"].layout == "masked"
    assert len(clock.calls) == 2


def test_with_the_clock_as_it_is_some_layout_is_chosen() -> None:
    model, report = split(seed=5)
    assert report.layouts["0"].split()[0] == ("masked" if structure_of(model[0]) is None else "grouped")


def test_a_consumer_is_timed_on_its_input_after_the_split(clock: Clock) -> None:
    clock(masked=2.0, grouped=1.0)
    model, x = mlp()
    fpe.expand(
        model,
        fpe.Expansion(alpha=2, partition="shared", prune="columns", outgoing="partition", layout="auto"),
        example_inputs=x,
    )
    assert {call[1] for call in clock.calls} == {(16, 128)}  # 128 inputs, and 64 hidden neurons that became 128
    assert isinstance(model[2], GroupedLinear)
    picture = autotune._as_wide(nn.Conv2d(8, 4, 3), (2, 4, 16, 16))
    assert picture == (2, 8, 16, 16)


def test_hooks_of_others_are_neither_run_nor_copied(clock: Clock) -> None:
    model, x = mlp()
    seen: list[nn.Module] = []
    model[0].register_forward_hook(lambda module, *_: seen.append(module))
    fpe.expand(model, fpe.Expansion(alpha=2, partition="shared", prune="columns", layout="auto"), example_inputs=x)
    assert seen == []
    model(x)
    assert seen == [model[0]]


def test_a_layout_that_cannot_run_is_left_out_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        times = measure({"masked": nn.Linear(4, 2), "other": nn.Linear(3, 2)}, (2, 4), training=True)
    assert list(times) == ["masked"]
    assert "layout other is left out" in caplog.text
