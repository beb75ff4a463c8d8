"""The day with a GPU: what its report and its exit code say. CI runs the whole command on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.gpu_day import __main__ as day
from benchmarks.gpu_day import checks, compare, ddp, rows
from benchmarks.gpu_day.rows import Row

CPU = torch.device("cpu")


def quiet(monkeypatch: pytest.MonkeyPatch, **steps: list[Row]) -> None:
    """Replace the long steps of the day."""
    for name in ("packing", "training", "comparison"):
        found = steps.get(name, [])
        monkeypatch.setattr(day, name, lambda *_, found=found: found)


def test_a_kernel_that_refuses_is_named_and_ends_the_day_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("cutlass: no\nroom | here")

    row = rows.tried("pack", "bfloat16", ("2:4, cutlass", "ok"), lambda: str(refuse()))
    quiet(monkeypatch, packing=[row], training=[Row("DDP", "probe", "2:4, cutlass", "ok", "loss 3 to 2")])
    file = tmp_path / "deep" / "report.md"
    assert day.main(["--device", "cpu", "--no-tests", "--output", str(file)]) == 1
    report = file.read_text()
    assert "| pack | bfloat16 | 2:4, cutlass | REFUSED | RuntimeError: cutlass: no room / here |" in report
    assert "1 of 2 rows were REFUSED" in report


def test_a_step_that_breaks_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quiet(monkeypatch, comparison=[Row("time", "masked", "masked product", "ok", "1.00x")])

    def broken(*_: object) -> list[Row]:
        raise MemoryError

    monkeypatch.setattr(day, "training", broken)
    file = tmp_path / "report.md"
    assert day.main(["--device", "cpu", "--no-tests", "--output", str(file)]) == 1
    assert "MemoryError" in file.read_text()
    assert "| time | masked |" in file.read_text()


def test_without_a_refusal_the_exit_code_is_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quiet(monkeypatch, training=[Row("DDP", "probe", "dense product", "replaced", "loss 3 to 2")])
    file = tmp_path / "report.md"
    assert day.main(["--device", "cpu", "--no-tests", "--output", str(file)]) == 0
    assert "In 1 rows a dense product ran in place of a kernel" in file.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_the_cpu_has_to_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert day.main([]) == 1
    assert "--device cpu" in capsys.readouterr().err


def test_a_gpu_without_its_kernels_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "backend_of", lambda _: None)
    monkeypatch.setattr(rows, "no_kernel", lambda _: "this build of torch has no cuSPARSELt")
    assert rows.kernel_on(torch.device("cuda")) == ("2:4: this build of torch has no cuSPARSELt", rows.REFUSED)


def test_packed_layers_compute_the_same_on_a_cpu() -> None:
    found = checks.packing(CPU, small=True)
    assert [row.status for row in found] == [rows.REPLACED] * 2
    assert all("packed 0.5" in row.note for row in found)


def test_every_layout_is_timed_next_to_its_dense_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "WARM_UP", 1)
    monkeypatch.setattr(compare, "SMALL_TOKENS", (8,))
    found = {row.what.split(",")[0]: row for row in compare.comparison(CPU, small=True)}
    assert list(found) == ["dense", *compare.LAYOUTS]
    assert found["semi_structured"].status == rows.REPLACED
    assert "clocks" in found["dense"].note
    assert all("of the dense parent" in found[name].note for name in compare.LAYOUTS)


def test_a_layout_that_cannot_split_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no room")

    monkeypatch.setattr(compare, "SMALL_TOKENS", (8,))
    monkeypatch.setattr(compare, "split_pair", refuse)
    found = compare.comparison(CPU, small=True)
    assert [row.status for row in found].count(rows.REFUSED) == len(compare.LAYOUTS)


@pytest.mark.slow
def test_two_processes_train_alike() -> None:
    found = ddp.training(CPU, small=True)
    assert [row.status for row in found] == [rows.REPLACED] * 2, found
