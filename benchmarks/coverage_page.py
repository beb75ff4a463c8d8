"""Write the rows of ``benchmarks.coverage`` as a page of Markdown: totals, refusals, and models not run."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date

from benchmarks.coverage_table import counts_of, differs, kind, totals

Row = Mapping[str, str]

LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "transformers")
COLUMNS = {
    "models": "models",
    "run": "run",
    "widened": "widened",
    "complete": "complete",
    "by hand": "widths by hand",
    "found there": "found of these",
    "found": "sites found",
    "proven": "proven",
    "one producer": "with one producer",
    "of these proven": "of these proven",
    "expanded": "expanded",
    "wrong": "wrong",
}
INTRODUCTION = """# Coverage: public architectures

Each model has random weights. Duplication proves the sites that `find_sites` returns: in float64 and with random
parameters, doubling their units leaves the outputs equal to 1e-6, and a deliberate mistake does not. The proof takes
all sites at once, and halves down to single sites if that fails. `expand` then splits all sites in two, the model takes
one training step, and its state_dict loads into a copy with the old widths. The number of non-zeros has to be the same
before, after the split and after the step. The copy has to be bit-identical and to compute the same.

- *Widened* models have sites, and pass all checks. In *complete* ones `expand` splits every site; in the others it
  refuses some, for a reason in the list below.
- *Widths by hand* are counted from the definitions of blocks (`benchmarks/coverage_counts*.py`), for some families;
  *found of these* are the sites that `find_sites` returns for the same models.
- *Wrong* models have a false site, another number of non-zeros, or a state_dict that differs after loading.
- torchvision: all classification and segmentation models. timm: 2 + n // 16 architectures of every family of n, the
  smallest of each stretch of its names in alphabetical order. open_clip: both towers of every config, with at most 4 of
  their equal blocks and a vocabulary of 512; towers that differ only in their inputs run once. transformers: small
  configs. Images have the smallest size that a model accepts, texts have 8 tokens.
- An interrupted run continues, so rows may come from several commits.
"""


def page(rows: Sequence[Row], missing: Sequence[str]) -> str:
    """The whole page.

    Args:
        rows: Results, as read from the CSV file.
        missing: Names of models of the list that were not run.

    Returns:
        Markdown.
    """
    parts = [INTRODUCTION, _setting(rows), _totals(rows, missing), "## Refusals\n"]
    parts.append(_counted("Widths that `find_sites` refuses, by the most frequent reasons", rows, "refusals"))
    parts.append(_counted("Sites that `expand` refuses", rows, "left_out"))
    unfinished = [row for row in rows if row["status"] not in ("ok", "no site", "partly", "skipped")]
    parts.append(_listed("Models that did not pass", [f"{row['name']}: {row['note']}" for row in unfinished]))
    none = [f"{row['name']}: {row['refusals']}" for row in rows if row["status"] == "no site"]
    parts.append(_listed("Models without a site", none))
    other = [f"{row['name']}: {row['exist']} by hand, {row['found']} found" for row in rows if differs(row)]
    parts.append(_listed("Counted otherwise by hand", other))
    skipped = Counter(row["note"] for row in rows if row["status"] == "skipped")
    parts.append(_listed("Skipped", [f"{count} x {note}" for note, count in skipped.most_common()]))
    parts.append(f"## Not run\n\n{len(missing)} models on the list: {', '.join(missing)}\n" if missing else "")
    return "\n".join(part for part in parts if part)


def _setting(rows: Sequence[Row]) -> str:
    versions = ", ".join(f"{library} {_version(library)}" for library in LIBRARIES)
    seconds = sum(float(row["cpu"] or 0) for row in rows)
    return (
        f"`python -m benchmarks.coverage`, {date.today()}, Python {platform.python_version()}, {versions}; "
        f"{seconds / 60:.0f} minutes of one core for the models below.\n"
    )


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _totals(rows: Sequence[Row], missing: Sequence[str]) -> str:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(kind(row), []).append(row)
    left = Counter(name.partition("/")[0] for name in missing)
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, members in {**groups, "all": list(rows)}.items():
        values = totals(members)
        values["models"] += len(missing) if name == "all" else left[name]
        lines.append(f"| {name} | " + " | ".join(f"{values[key]:,}" for key in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def _counted(title: str, rows: Sequence[Row], field: str) -> str:
    found: Counter[str] = Counter()
    for reason, count in counts_of(rows, field).items():
        found[re.split(r"(?<=\w)\. ", reason)[0]] += count  # the first sentence is the reason, the rest is advice
    return _listed(title, [f"{count:,} x {reason}" for reason, count in found.most_common(25)])


def _listed(title: str, lines: Sequence[str]) -> str:
    return f"{title}:\n\n" + "\n".join(f"- {' '.join(line.split())}" for line in lines) + "\n" if lines else ""
