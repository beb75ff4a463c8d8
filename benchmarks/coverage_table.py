"""Print the rows of ``benchmarks.coverage``: a table of models, totals, and the most frequent refusals."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

Row = Mapping[str, str]

COLUMNS = {
    "model": "name",
    "input": "size",
    "M": "parameters",
    "by hand": "exist",
    "found": "found",
    "proven": "proven",
    "expanded": "expanded",
    "step": "trained",
    "nnz": "nonzeros_equal",
    "reload": "round_trip",
    "s": "seconds",
    "CPU s": "cpu",
    "MiB": "memory",
    "status": "status",
}
TOTALS = (
    *("models", "run", "with a site", "widened", "complete", "by hand", "found there", "found", "proven"),
    *("one producer", "of these proven", "expanded", "wrong"),
)


def kind(row: Row) -> str:
    """The library of a model."""
    return row["name"].partition("/")[0]


def number(text: str) -> int:
    """A field as a number; empty is 0."""
    return int(text or 0)


def totals(rows: Sequence[Row]) -> dict[str, int]:
    """Add up the rows of one kind.

    ``"widened"`` counts the models with sites that pass all checks. ``"found there"`` counts the found sites of models
    that were also counted by hand. ``"wrong"`` counts models with an error that must never happen: a site whose
    duplication changes the outputs, another number of non-zeros, or a state_dict that differs after loading.

    Example:
        >>> row = {"name": "a/b", "status": "ok", "exist": "2", "found": "2", "proven": "2", "expanded": "1"}
        >>> row |= {"single": "1", "single_proven": "1", "nonzeros_equal": "True", "round_trip": "True"}
        >>> totals([row])["expanded"]
        1
    """
    run = [row for row in rows if row["status"] != "skipped"]

    def total(field: str, of: Sequence[Row] = run) -> int:
        return sum(number(row[field]) for row in of)

    counted = [row for row in run if row["exist"] and row["found"]]
    wrong = [
        row
        for row in run
        if (row["proven"] and number(row["proven"]) < number(row["found"]))
        or "False" in (row["nonzeros_equal"], row["round_trip"])
    ]
    values = (
        len(rows),
        len(run),
        sum(number(row["found"]) > 0 for row in run),
        sum(row["status"] in ("ok", "partly") for row in run),
        sum(row["status"] == "ok" for row in run),
        total("exist", counted),
        total("found", counted),
        total("found"),
        total("proven"),
        total("single"),
        total("single_proven"),
        total("expanded"),
        len(wrong),
    )
    return dict(zip(TOTALS, values, strict=True))


def print_report(rows: Sequence[Row], wanted: int, console: Console) -> None:
    """Print everything.

    Args:
        rows: Results, as read from the CSV file.
        wanted: Number of models of the list; an interrupted run has fewer rows.
        console: Console of the output.
    """
    table = Table(
        title=f"{len(rows)} of {wanted} models",
        caption="M: million parameters; step: trained one step; nnz: same non-zeros; reload: bit-identical",
        box=box.SIMPLE_HEAD,
    )
    for head in COLUMNS:
        table.add_column(head, justify="left" if head in ("model", "status") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_short(row[field]) for field in COLUMNS.values()), style=_style(row))
    console.print(table)
    summary = Table(title="totals", box=box.SIMPLE_HEAD)
    for head in ("kind", *TOTALS, "CPU s"):
        summary.add_column(head, justify="left" if head == "kind" else "right")
    groups = {name: [row for row in rows if kind(row) == name] for name in dict.fromkeys(map(kind, rows))}
    for name, members in {**groups, "all": list(rows)}.items():
        seconds = sum(float(row["cpu"] or 0) for row in members)
        summary.add_row(
            name, *map(str, totals(members).values()), f"{seconds:.0f}", end_section=name == list(groups)[-1]
        )
    console.print(summary)
    _print_counts("statuses", Counter(row["status"] for row in rows), console)
    _print_counts("widths that are refused, by reason", counts_of(rows, "refusals"), console)
    _print_counts("sites that expand refuses, by reason", counts_of(rows, "left_out"), console)
    _print_notes("counted otherwise by hand", rows, differs, console)
    _print_notes("not complete", rows, lambda row: row["status"] not in ("ok", "skipped"), console)
    _print_counts("skipped", Counter(row["note"] for row in rows if row["status"] == "skipped"), console)


def counts_of(rows: Sequence[Row], field: str) -> Counter[str]:
    """Add up the reasons of all models.

    Example:
        >>> counts_of([{"refusals": "2 x it is an output; 1 x tied"}, {"refusals": "1 x tied"}], "refusals")
        Counter({'it is an output': 2, 'tied': 2})
    """
    counts: Counter[str] = Counter()
    for row in rows:
        for part in re.split(r"; (?=\d+ x )", row[field]):
            if part:
                count, _, reason = part.partition(" x ")
                counts[reason] += int(count)
    return counts


def differs(row: Row) -> bool:
    """Whether the count by hand of a model differs from the found sites."""
    return bool(row["exist"] and row["found"]) and row["exist"] != row["found"]


def _print_counts(title: str, counts: Counter[str], console: Console) -> None:
    if counts:
        console.print(f"[bold]{title}[/]")
        for what, count in counts.most_common(12):
            console.print(f"  {count:>6}  {what}", markup=False, highlight=False)


def _print_notes(title: str, rows: Sequence[Row], wanted: Callable[[Row], bool], console: Console) -> None:
    chosen = [row for row in rows if wanted(row)]
    if chosen:
        console.print(f"[bold]{title}[/]")
        for row in chosen:
            text = f"  {row['name']}: {row['status']}, {row['exist'] or '?'} by hand, {row['found'] or '?'} found"
            console.print(f"{text}. {row['note'] or row['refusals']}", markup=False, highlight=False, soft_wrap=True)


def _short(text: str) -> str:
    return {"True": "yes", "False": "NO"}.get(text, text)


def _style(row: Row) -> str:
    return {"ok": "", "skipped": "dim", "no site": "yellow", "partly": "yellow"}.get(row["status"], "red")
