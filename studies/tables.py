"""The numbers of a study as tables: accuracies, and differences to the baselines paired by seed."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from studies.arms import BASELINES, arm_named
from studies.results import COLUMNS, Row
from studies.statistics import Estimate, estimate, paired

NOTE = (
    "Mean ± standard error over seeds; differences are paired by seed, in percentage points with 95 % intervals "
    "(Student's t), then relative to the baseline's mean. Non-zeros count weights and biases."
)
MARK = "An arm marked with * spends more non-zeros than the others."


@dataclass(frozen=True)
class Table:
    """One setting.

    Attributes:
        title: What it is of.
        header: Names of the columns.
        lines: A line for each arm.
        notes: Sentences below it: runs that failed, and why.
    """

    title: str
    header: tuple[str, ...]
    lines: list[tuple[str, ...]]
    notes: list[str]


def names(rows: Sequence[Row], key: str) -> list[str]:
    """The values of a column, each once, in their order."""
    return list(dict.fromkeys(getattr(row, key) for row in rows))


def by_seed(rows: Sequence[Row], setting: str, arm: str, part: str = "test") -> dict[int, float]:
    """Accuracies in percent of the runs that did not fail; or 100 times a measure, of those that have it."""
    own = [row for row in rows if row.setting == setting and row.arm == arm and row.status == "done"]
    if part in COLUMNS:
        return {row.seed: 100 * getattr(row, part) for row in own}
    return {row.seed: 100 * row.measures[part] for row in own if part in row.measures}


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table for each setting.

    Example:
        >>> rows = [Row("dense", s, "done", "", 209, 1, 0.8, 0.8, 1, "A") for s in range(2)]
        >>> tables(rows)[0].lines
        [('dense', '209', '80.0 ± 0.0', '80.0 ± 0.0', '-', '-', '2')]
    """
    header = ("arm", "non-zeros", "validation", "test", *(f"minus {each} (test)" for each in BASELINES), "seeds")
    found = []
    for setting in names(rows, "setting"):
        own = [row for row in rows if row.setting == setting]
        lines = []
        for arm in names(own, "arm"):
            counts = sorted({row.nonzeros for row in own if row.arm == arm and row.status == "done"})
            test = estimate(by_seed(own, setting, arm))
            lines.append(
                (
                    arm + "*" * arm_named(arm).marked,
                    "/".join(map(str, counts)) or "-",
                    plus_minus(estimate(by_seed(own, setting, arm, "val"))),
                    plus_minus(test),
                    *(difference(own, setting, arm, baseline) for baseline in BASELINES),
                    str(test.count),
                )
            )
        title = f"Setting {setting}: accuracy in %, mean ± standard error over seeds"
        found.append(Table(title, header, lines, _failures(own)))
    return found


def _failures(rows: Sequence[Row]) -> list[str]:
    """A sentence for each arm and reason."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if row.status == "failed":
            seeds.setdefault((row.arm, row.why), []).append(row.seed)
    return [
        f"Failed: {arm}, {'seed' if len(own) == 1 else 'seeds'} {', '.join(map(str, own))}: {why}"
        for (arm, why), own in seeds.items()
    ]


def plus_minus(found: Estimate) -> str:
    """A mean and its standard error, as ``80.0 ± 0.5``."""
    return f"{found.mean:.1f} ± {found.error:.1f}" if found.count else "-"


def difference(rows: Sequence[Row], setting: str, arm: str, baseline: str, part: str = "test") -> str:
    """A difference paired by seed: its mean, 95 % interval, and the mean relative to the baseline's."""
    base = by_seed(rows, setting, baseline, part)
    found = paired(by_seed(rows, setting, arm, part), base)
    if arm == baseline or found.count < 2:
        return "-"
    relative = 100 * found.mean / estimate(base).mean
    return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}], {relative:+.1f} %"


def as_markdown(found: Sequence[Table]) -> str:
    """Tables as Markdown.

    Example:
        >>> print(as_markdown([Table("A", ("arm",), [("dense",)], [])]))
        ### A
        <BLANKLINE>
        | arm |
        |---|
        | dense |
        <BLANKLINE>
    """
    parts: list[str] = []
    for table in found:
        parts += [f"### {table.title}\n"]
        parts += [f"| {' | '.join(line)} |" for line in (table.header, *table.lines)]
        parts.insert(len(parts) - len(table.lines), "|" + "---|" * len(table.header))
        parts += [f"\n{note}" for note in table.notes]
        parts.append("")
    return "\n".join(parts)


def as_html(found: Sequence[Table]) -> str:
    """Tables as HTML, everything in them escaped.

    Example:
        >>> "&lt;b&gt;" in as_html([Table("<b>", ("arm",), [("dense",)], [])])
        True
    """

    def line(cells: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    parts: list[str] = []
    for table in found:
        parts += [f"<h2>{html.escape(table.title)}</h2>", "<table>", line(table.header, "th")]
        parts += [line(cells, "td") for cells in table.lines]
        parts += ["</table>", *(f"<p>{html.escape(note)}</p>" for note in table.notes)]
    return "\n".join(parts)
