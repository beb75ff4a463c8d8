"""The rule of advice is fitted without the set that it is tested on."""

from __future__ import annotations

from studies.rule import Cell, confusion, fitted, tables_of

CELLS = [
    Cell("a", 4, 2, 32.0, 0.1, 3.0),
    Cell("a", 4, 4, 8.0, 0.3, -2.0),
    Cell("b", 4, 2, 20.0, 0.2, 1.0),
    Cell("b", 4, 4, 10.0, 0.6, -1.0),
    Cell("c", 8, 4, 40.0, 1.5, -4.0),
]


def test_losses_and_gains_are_counted_by_warning() -> None:
    assert confusion(CELLS, (16, 0.75)) == (3, 0, 0, 2)
    assert confusion(CELLS, (0, 0.75)) == (1, 2, 0, 2)
    assert confusion(CELLS, (24, 9.0)) == (2, 1, 1, 1)


def test_the_best_bounds_separate_what_can_be_separated() -> None:
    assert confusion(CELLS, fitted(CELLS)) == (3, 0, 0, 2)


def test_every_set_is_left_out_once() -> None:
    left_out, every = tables_of(CELLS)
    assert [line[0] for line in left_out.lines] == ["a", "b", "c", "all"]
    assert sum(map(int, left_out.lines[-1][2:])) == len(CELLS)
    assert every.lines[0][:3] == ("c", "8", "4")
    without_c = fitted(CELLS[:-1])
    assert left_out.lines[2][1] == f"{without_c[0]}, {without_c[1]}"
