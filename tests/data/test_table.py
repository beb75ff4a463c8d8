"""Tables become batches: each row is used once, labels are sorted, and a bad cell is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fpe_lightning.data import TableDataModule

Rows = list[tuple[float | str, ...]]


def write(path: Path, rows: Rows, head: str = "a,b,label") -> Path:
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def rows(count: int, labels: tuple[str, ...] = ("no", "yes")) -> Rows:
    return [(float(n), float(n * n % 7), labels[n % len(labels)]) for n in range(count)]


def test_each_row_is_used_once_and_classes_keep_their_shares(tmp_path: Path) -> None:
    data = TableDataModule(write(tmp_path / "t.csv", rows(100)), standardize=False)
    data.setup()
    first = torch.cat([torch.as_tensor(data.arrays[stage][0])[:, 0] for stage in ("train", "val", "test")])
    assert sorted(first.tolist()) == list(range(100))
    assert [len(data.arrays[stage][1]) for stage in ("train", "val", "test")] == [70, 15, 15]
    assert float(torch.as_tensor(data.arrays["train"][1]).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert (data.num_features, data.num_outputs, data.class_names) == (2, 2, ("no", "yes"))


def test_batches_are_standardized_by_the_training_rows(tmp_path: Path) -> None:
    data = TableDataModule(write(tmp_path / "t.csv", rows(100)), batch_size=None)
    data.setup()
    ((x, _),) = data.train_dataloader()
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, unbiased=False), torch.ones(2))


def test_labels_that_are_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    assert TableDataModule(write(tmp_path / "t.csv", rows(30, ("10", "9", "2")))).class_names == ("2", "9", "10")


def test_files_of_their_own_for_validation_and_test(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.csv", rows(count)) for name, count in (("a", 20), ("b", 6), ("c", 4))]
    data = TableDataModule(paths[0], val_path=paths[1], test_path=paths[2])
    data.setup()
    assert [len(data.arrays[stage][1]) for stage in ("train", "val", "test")] == [20, 6, 4]


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ([(1.0, "", "no")], "has '' in row 31 of the column 'b', which is no number"),
        ([(1.0, "nan", "no")], "has 'nan' in row 31 of the column 'b'"),
        ([(1.0, "red", "no")], "has 'red' in row 31"),
        ([(1.0, "no")], "has 3 columns, and its row 32 has 2 cells"),
    ],
)
def test_a_bad_row_is_named(bad: Rows, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        TableDataModule(write(tmp_path / "t.csv", [*rows(30), *bad])).setup()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"label": "lable"}, "no column 'lable'; it has a, b, label"),
        ({"features": ["a", "c"]}, "has no column 'c'"),
        ({"val_fraction": 0.7}, "between 0 and 0.5, found 0.7"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        TableDataModule(write(tmp_path / "t.csv", rows(30)), **arguments).setup()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"A table is a \.csv or a \.parquet file"):
        TableDataModule(write(tmp_path / "t.xls", rows(30))).setup()


def test_parquet_holds_the_same_rows(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = dict(zip(("a", "b", "label"), map(list, zip(*rows(40), strict=True)), strict=True))
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    ours, same = TableDataModule(tmp_path / "t.parquet"), TableDataModule(write(tmp_path / "t.csv", rows(40)))
    ours.setup()
    same.setup()
    for stage in ("train", "val", "test"):
        for left, right in zip(ours.arrays[stage], same.arrays[stage], strict=True):  # type: ignore[index]
            assert torch.equal(torch.as_tensor(left), torch.as_tensor(right))
