"""The numbers of a study as tables: accuracies, and differences to the baselines paired by seed."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from studies.arms import BASELINES
from studies.runs import Runs
from studies.statistics import Estimate, estimate, paired

NOTE = (
    "Mean ± standard error over seeds; differences are paired by seed, in percentage points with 95 % intervals "
    "(Student's t), then relative to the baseline's mean. Non-zeros count weights and biases."
)
MARK = "An arm marked with * spends more non-zeros than the others."


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: Its title.
        header: Names of the columns.
        lines: Its lines.
        notes: Sentences below it, such as runs that failed, and why.
    """

    title: str
    header: tuple[str, ...]
    lines: Sequence[tuple[str, ...]]
    notes: Sequence[str] = ()


def tables(runs: Runs) -> list[Table]:
    """One table for each setting.

    Example:
        >>> from studies.arms import Dense
        >>> from studies.results import Row
        >>> rows = [Row("dense", s, "done", "", 209, 1, 0.8, 0.8, 1, "A") for s in range(2)]
        >>> tables(Runs(rows, {"dense": Dense()}))[0].lines
        [('dense', '209', '80.0 ± 0.0', '80.0 ± 0.0', '-', '-', '2')]
    """
    header = ("arm", "non-zeros", "validation", "test", *(f"minus {each} (test)" for each in BASELINES), "seeds")
    found = []
    for setting in runs.setting_names:
        own = runs.of(setting)
        lines = [
            (
                runs.shown(label),
                nonzeros(own, label) or "-",
                plus_minus(estimate(own.percent(setting, label, "val"))),
                plus_minus(estimate(own.percent(setting, label))),
                *(difference(own, setting, label, baseline) for baseline in BASELINES),
                str(len(own.percent(setting, label))),
            )
            for label in own.labels
        ]
        title = f"Setting {setting}: accuracy in %, mean ± standard error over seeds"
        found.append(Table(title, header, lines, _failures(own)))
    return found


def differences(runs: Runs, columns: Mapping[str, tuple[str, str]], title: str) -> list[Table]:
    """A table of paired differences to each baseline that the runs have.

    Args:
        runs: Runs of one study.
        columns: A setting and a part of its rows for each column.
        title: Begins the titles.
    """
    found = []
    for baseline in BASELINES:
        lines = [
            (
                runs.shown(label),
                *(difference(runs, setting, label, baseline, part) for setting, part in columns.values()),
            )
            for label in runs.labels
            if label != baseline
        ]
        if any(cell != "-" for _, *cells in lines for cell in cells):
            name = f"{title} minus {baseline}, paired, in points [95 %], then relative"
            found.append(Table(name, ("arm", *columns), lines))
    return found


def nonzeros(runs: Runs, *labels: str) -> str:
    """Numbers of non-zeros of some arms, as ``209`` or ``209/241``."""
    return "/".join(map(str, sorted({r.nonzeros for r in runs.rows if r.arm in labels and r.status == "done"})))


def _failures(runs: Runs) -> list[str]:
    """A sentence for each arm and reason."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for row in runs.rows:
        if row.status == "failed":
            seeds.setdefault((row.arm, row.why), []).append(row.seed)
    return [
        f"Failed: {arm}, {'seed' if len(own) == 1 else 'seeds'} {', '.join(map(str, own))}: {why}"
        for (arm, why), own in seeds.items()
    ]


def plus_minus(found: Estimate, digits: int = 1) -> str:
    """A mean and its standard error, as ``80.0 ± 0.5``."""
    return f"{found.mean:.{digits}f} ± {found.error:.{digits}f}" if found.count else "-"


def interval(found: Estimate, digits: int = 1) -> str:
    """A mean with its 95 % interval, as ``+1.0 [-0.5, +2.5]``."""
    if found.count < 2:
        return "-"
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def difference(runs: Runs, setting: str, label: str, baseline: str, part: str = "test") -> str:
    """A difference paired by seed: its mean, 95 % interval, and the mean relative to the baseline's."""
    base = runs.percent(setting, baseline, part)
    found = paired(runs.percent(setting, label, part), base)
    if label == baseline or found.count < 2:
        return "-"
    return f"{interval(found)}, {100 * found.mean / estimate(base).mean:+.1f} %"


def as_markdown(found: Sequence[Table]) -> str:
    """Tables as Markdown.

    Example:
        >>> print(as_markdown([Table("A", ("arm",), [("dense",)])]))
        ### A
        <BLANKLINE>
        | arm |
        |---|
        | dense |
        <BLANKLINE>
    """
    parts: list[str] = []
    for table in found:
        head, *lines = (f"| {' | '.join(line)} |" for line in (table.header, *table.lines))
        parts += [f"### {table.title}\n", head, "|" + "---|" * len(table.header), *lines]
        parts += [*(f"\n{note}" for note in table.notes), ""]
    return "\n".join(parts)


def as_html(found: Sequence[Table]) -> str:
    """Tables as HTML, everything in them escaped.

    Example:
        >>> "&lt;b&gt;" in as_html([Table("<b>", ("arm",), [("dense",)])])
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
