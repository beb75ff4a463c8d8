"""The coverage command: which models it picks, what it counts by hand, and one model from end to end."""

from __future__ import annotations

import csv
import io
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from rich.console import Console
from torch import Tensor, nn

from benchmarks import coverage, coverage_builders, coverage_checks, coverage_zoo
from benchmarks.coverage_counts import sites_that_exist
from benchmarks.coverage_page import page
from benchmarks.coverage_row import Row
from benchmarks.coverage_table import print_report, totals
from benchmarks.coverage_zoo import Entry, pick
from fpe_lightning.sites import find_sites


class TestPick:
    """The rule that picks architectures."""

    def test_it_does_not_depend_on_the_order_of_names_and_families(self) -> None:
        families = {f"f{i}": [f"f{i}_{j}" for j in range(3 * i + 1)] for i in range(12)}
        shuffled = {key: random.Random(1).sample(families[key], len(families[key])) for key in reversed(families)}
        sizes = {name: len(name) for names in families.values() for name in names}
        assert pick(families, sizes) == pick(shuffled, sizes)

    def test_a_family_gives_two_and_one_more_for_each_sixteen_names(self) -> None:
        for count, expected in ((1, 1), (2, 2), (15, 2), (16, 3), (160, 12)):
            names = [f"m{i:03}" for i in range(count)]
            picked = pick({"m": names}, {})
            assert len(picked) == len(set(picked)) == expected
            assert set(picked) <= set(names)

    def test_big_variants_are_passed_over_unless_the_family_has_nothing_else(self) -> None:
        assert pick({"a": ["a_huge", "a_tiny"], "b": ["b_7b", "b_giant"]}, {}) == ["a_tiny", "b_7b", "b_giant"]

    def test_of_each_stretch_of_names_the_smallest_is_taken(self) -> None:
        sizes = {"a": 3, "b": 1, "c": 2, "d": 9, "e": 8, "f": 10}
        assert pick({"m": list(sizes)}, sizes) == ["b", "e"]

    def test_timm_is_sampled_over_all_its_families(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("timm")
        families = coverage_zoo.timm_families()
        monkeypatch.setattr(coverage_zoo, "timm_sizes", dict)  # counting the parameters of all takes minutes
        names = [entry.name.removeprefix("timm/") for entry in coverage_zoo.timm_entries()]
        assert len(names) == len(set(names)) >= 200
        assert all(set(members) & set(names) for members in families.values())


class TestCatalogue:
    """The list of models."""

    def test_names_are_unique_and_every_model_of_torchvision_is_there(self) -> None:
        names = [entry.name for entry in coverage_zoo.catalogue(coverage_zoo.QUICK_TIMM)]
        assert len(names) == len(set(names))
        for kind, module in (("torchvision", torchvision.models), ("segmentation", torchvision.models.segmentation)):
            assert {f"{kind}/{name}" for name in torchvision.models.list_models(module=module)} <= set(names)

    def test_every_open_clip_config_has_its_towers_or_equal_ones(self) -> None:
        import open_clip

        entries = list(coverage_zoo.open_clip_entries())
        sides = [entry.name.rpartition("/")[2] for entry in entries]
        assert 0 < sides.count("image") <= len(open_clip.list_models())
        assert 0 < sides.count("text") <= len(open_clip.list_models())
        assert {"open_clip/ViT-B-32/image", "open_clip/RN50/image", "open_clip/RN50/text"} <= {e.name for e in entries}

    def test_the_quick_models_are_on_the_list(self) -> None:
        assert set(coverage_zoo.QUICK) <= {entry.name for entry in coverage_zoo.catalogue(coverage_zoo.QUICK_TIMM)}

    def test_the_quick_architectures_of_timm_exist(self) -> None:
        timm = pytest.importorskip("timm")
        assert set(coverage_zoo.QUICK_TIMM) <= set(timm.list_models())

    def test_a_missing_library_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(coverage_zoo, "installed", lambda library: False)
        entries = list(coverage_zoo.transformers_entries())
        assert all(entry.skip and "transformers is not installed" in entry.skip for entry in entries)
        assert coverage.run_one(entries[0], memory=1, seconds=1).status == "skipped"


class TestCounts:
    """Hand-written counts against what is found."""

    @pytest.mark.parametrize(
        ("name", "model"),
        [
            ("torchvision/vit_b_16", torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=5)),
            ("torchvision/swin_t", torchvision.models.SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4])),
            (
                "torchvision/densenet121",
                torchvision.models.DenseNet(growth_rate=4, block_config=(2, 3), num_init_features=6, num_classes=5),
            ),
        ],
    )
    def test_they_agree_on_tiny_models(self, name: str, model: nn.Module) -> None:
        assert sites_that_exist(name, model) == len(find_sites(model, torch.zeros(2, 3, 32, 32))) > 0

    def test_they_are_what_the_papers_say(self) -> None:
        known = {"resnet18": 8, "resnet50": 33, "alexnet": 7, "vgg16": 15, "squeezenet1_0": 25, "mobilenet_v2": 20}
        with torch.device("meta"):
            for name, count in known.items():
                assert sites_that_exist(f"torchvision/{name}", torchvision.models.get_model(name)) == count

    def test_a_family_without_a_rule_is_not_counted(self) -> None:
        assert sites_that_exist("timm/volo_d1_224", nn.Linear(2, 2)) is None


class OnlyAbove(nn.Module):
    """A network for images of more than 60 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 61), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


def test_the_smallest_accepted_image_is_found() -> None:
    built = coverage_builders.smallest(lambda size: OnlyAbove(), fixed=False)
    assert built.size == 64 == built.inputs.shape[-1]
    with pytest.raises(RuntimeError, match="no square image of 32 to 512 pixels is accepted: RuntimeError"):
        coverage_builders.smallest(lambda size: nn.Sequential(nn.Conv2d(4, 2, 1)), fixed=False)


def small_net() -> coverage_builders.Built:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    return coverage_builders.Built(net, coverage_builders.images(8), 8)


def rows_of(entry: Entry) -> list[Row]:
    rows: list[Row] = []
    coverage_checks.measure(entry, rows.append)
    return rows


def test_every_check_of_a_good_model_passes() -> None:
    row = rows_of(Entry("torchvision/small", small_net))[-1]
    assert (row.status, row.found, row.proven, row.expanded) == ("ok", 1, 1, 1)
    assert row.trained
    assert row.nonzeros_equal
    assert row.round_trip
    assert row.error is not None
    assert row.error < 1e-12


def broken() -> coverage_builders.Built:
    raise ZeroDivisionError("no such model")


def hungry() -> coverage_builders.Built:
    with coverage_checks.memory_limit(1):
        torch.zeros(8 * 2**30)
    return small_net()


def sleepy() -> coverage_builders.Built:
    time.sleep(60)
    return small_net()


def dying() -> coverage_builders.Built:
    os._exit(7)


def killed_by_the_kernel() -> coverage_builders.Built:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_bad_model_becomes_a_row() -> None:
    row = rows_of(Entry("a/broken", broken))[-1]
    assert (row.status, row.note) == ("failed", "ZeroDivisionError: no such model")


def test_the_memory_guard_makes_a_row() -> None:
    assert rows_of(Entry("a/hungry", hungry))[-1].status == "memory"


def test_a_model_without_sites_is_no_failure() -> None:
    row = rows_of(Entry("a/linear", lambda: coverage_builders.Built(nn.Linear(3, 2), torch.zeros(2, 3), 3)))[-1]
    assert (row.status, row.found) == ("no site", 0)
    assert "it reaches an output of the model" in row.refusals


def test_a_site_that_cannot_be_split_is_left_out_with_a_reason() -> None:
    def build() -> coverage_builders.Built:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        return coverage_builders.Built(net, torch.ones(2, 1), 1)

    row = rows_of(Entry("a/one_input", build))[-1]
    assert (row.status, row.found, row.proven, row.expanded) == ("partly", 2, 2, 1)
    assert row.round_trip
    assert row.left_out.startswith("1 x alpha=# was asked for a site, whose neurons have # incoming weights at most")


def test_a_wrong_site_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command must see it when find_sites returns nonsense."""

    def forged(model: nn.Module, inputs: Tensor, *, explain: bool) -> tuple[list[object], list[object]]:
        sites = find_sites(model, inputs)
        return [replace(site, consumers=tuple(replace(c, run=1) for c in site.consumers)) for site in sites], []

    monkeypatch.setattr(coverage_checks, "find_sites", forged)
    row = rows_of(Entry("a/small", small_net))[-1]
    assert (row.status, row.found, row.proven) == ("failed", 1, 0)
    assert "not proven" in row.note


@pytest.mark.slow
def test_processes_that_hang_or_die_do_not_end_the_run() -> None:
    assert coverage.run_one(Entry("a/sleepy", sleepy), memory=8, seconds=1).status == "time"
    assert coverage.run_one(Entry("a/dying", dying), memory=8, seconds=60).status == "crash"
    killed = coverage.run_one(Entry("a/killed", killed_by_the_kernel), memory=8, seconds=60)
    assert (killed.status, killed.note) == ("memory", "killed for lack of memory")


@pytest.mark.slow
def test_the_command_writes_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows" / "coverage.csv"
    arguments = ["--only", "torchvision/squeezenet1_1", "--jobs", "1", "--output", str(path)]
    coverage.main(arguments)
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["exist"], row["found"], row["proven"], row["expanded"]) == ("ok", *["25"] * 4)
    written = path.read_bytes()
    coverage.main(arguments)  # nothing is left to do
    assert path.read_bytes() == written
    assert "1 of 1 models" in capsys.readouterr().out


def test_the_last_result_of_a_model_counts(tmp_path: Path) -> None:
    path = tmp_path / "coverage.csv"
    coverage.append_row(path, Row("a/x", status="time"))
    coverage.append_row(path, Row("a/x", status="ok", found=3))
    assert [(row["status"], row["found"]) for row in coverage.read_rows(path).values()] == [("ok", "3")]


def test_a_file_of_another_version_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "coverage.csv"
    path.write_text("name,status\na/x,ok\n")
    with pytest.raises(ValueError, match="has other columns than this version writes \\(name, status\\): move it away"):
        coverage.read_rows(path)


def test_an_unknown_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        coverage.main(["--only", "nothing/*"])
    assert "names are 'kind/model'" in capsys.readouterr().err


def test_the_report_counts_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "coverage.csv"
    good = Row("a/x", status="ok", exist=2, found=2, proven=2, expanded=2, nonzeros_equal=True, round_trip=True)
    bad = Row(
        "a/y",
        found=3,
        proven=2,
        single=3,
        single_proven=2,
        refusals="4 x it is an output; 1 x tied; twice",
        note="not proven: 0",
    )
    rows = [coverage.append_row(path, row) for row in (good, bad)]
    partly = coverage.append_row(tmp_path / "other.csv", replace(good, status="partly", expanded=1))
    assert [totals([partly])[name] for name in ("widened", "complete", "wrong")] == [1, 0, 0]
    assert totals(rows) == {
        "models": 2,
        "run": 2,
        "with a site": 2,
        "widened": 1,
        "complete": 1,
        "by hand": 2,
        "found there": 2,
        "found": 5,
        "proven": 4,
        "one producer": 3,
        "of these proven": 2,
        "expanded": 2,
        "wrong": 1,
    }
    out = io.StringIO()
    print_report(rows, 3, Console(file=out, width=140))
    assert "2 of 3 models" in out.getvalue()
    assert "4  it is an output" in out.getvalue()
    assert "a/y: failed, ? by hand, 3 found. not proven: 0" in out.getvalue()
    text = page(rows, ["b/z"])
    assert "| a | 2 | 2 | 1 | 1 | 2 | 2 | 5 | 4 | 3 | 2 | 2 | 1 |" in text
    assert "| all | 3 | 2 | 1 | 1 | 2 | 2 | 5 | 4 | 3 | 2 | 2 | 1 |" in text
    assert "- 4 x it is an output" in text
    assert "- a/y: not proven: 0" in text
    assert "## Not run\n\n1 models on the list: b/z\n" in text
    assert "Not run" not in page(rows, [])
