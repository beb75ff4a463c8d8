"""The table of all projects, on the terminal and as a page."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence

import torch
from rich.table import Table

from benchmarks.field.row import Row

COLUMNS = (
    *("project", "ran", "widths split", "non-zeros before", "after the split", "at the end", "kept"),
    *("plain file", "own loader", "resumes", "seconds"),
)
ABOUT = """# Field: public projects

Each project is trained as its users do, without and with the callback (`alpha=2`, split after the first of three
epochs), or with `fpe.expand` in a loop of its own. Nothing of a project is changed. *Widths split* are the sites that
were split, of all widths that were looked at; the rest is listed with reasons below.

- *Non-zeros before* is the count of the report; *after the split* and *at the end* are entries of parameters that are
  not zero, counted without this package. They may be fewer, where entries are zero that no mask holds. *Kept* means
  that they are never more.
- *Plain file*: the file of `plain_file=`, loaded by torch alone into a module as the project builds it, computes the
  same. *Own loader*: the loader of the project, inside of `with fpe.expanded_checkpoints():`, computes the same.
- *Resumes*: a run that stops after the second epoch and resumes ends *bit-identical*, or *goes on* where the project
  itself does not resume to the bit without a split either.
- The module of lightning-hydra-template is written by us after its own, as that is a template and no package.
"""


def rows_table(rows: Sequence[Row]) -> Table:
    """The rows for a terminal."""
    table = Table(title="Public projects without and with a split")
    for column in COLUMNS:
        table.add_column(column, overflow="fold", justify="left" if column in ("project", "ran") else "right")
    for row in rows:
        table.add_row(*(each[:40] for each in _cells(row)))
    return table


def page(rows: Sequence[Row], command: str) -> str:
    """The page, in Markdown.

    Args:
        rows: All rows.
        command: The command that printed them.

    Returns:
        The text of the page.
    """
    versions = sorted({each for row in rows for each in row.version.split(", ") if each})
    when = f"`{command}`, {datetime.date.today()}, Python {platform.python_version()}, torch {torch.__version__}"
    lines = [ABOUT, f"{when}; {', '.join(versions)}.", "", _summary(rows), ""]
    families = list(dict.fromkeys(_family(row) for row in rows))
    single = [row for row in rows if sum(_family(each) == _family(row) for each in rows) == 1]
    lines += ["## Projects", "", *_markdown(single), ""]
    for family in families:
        several = [row for row in rows if _family(row) == family]
        if len(several) > 1:
            lines += [f"## {family}", "", *_markdown(several), ""]
    noted = [row for row in rows if row.note]
    if noted:
        lines += ["## Widths that stay, and refusals", "", *(f"- {row.project}: {_escaped(row.note)}" for row in noted)]
    return "\n".join(lines).rstrip() + "\n"


def _family(row: Row) -> str:
    return row.project.partition("/")[0]


def _summary(rows: Sequence[Row]) -> str:
    """How many of the projects that ran did each thing."""
    ran = [row for row in rows if row.ran == "yes"]
    split = [row for row in ran if row.kept]
    counts = {
        "projects": len(rows),
        "installed and trained": len(ran),
        "split": len(split),
        "kept their non-zeros": sum(row.kept == "yes" for row in split),
        "plain file loads": sum(row.plain == "yes" for row in split),
        "own loader reads": sum(row.loader == "yes" for row in split),
        "resumes bit-identical": sum(row.resumes == "bit-identical" for row in split),
        "goes on": sum(row.resumes == "goes on" for row in split),
    }
    rule = "|".join("---:" for _ in counts)
    return f"| {' | '.join(counts)} |\n|{rule}|\n| {' | '.join(map(str, counts.values()))} |"


def _markdown(rows: Sequence[Row]) -> list[str]:
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'|'.join('---' for _ in COLUMNS)}|"]
    return lines + [f"| {' | '.join(map(_escaped, _cells(row)))} |" for row in rows]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("\x1b[1m", "").replace("\x1b[0m", "")


def _cells(row: Row) -> list[str]:
    counts = ["" if each is None else f"{each:,}" for each in (row.before, row.after, row.end)]
    seconds = f"{row.seconds:.0f}" if row.seconds else ""
    return [row.project, row.ran, row.split, *counts, row.kept, row.plain, row.loader, row.resumes, seconds]
