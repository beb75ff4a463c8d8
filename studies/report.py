"""The report of a study: a table, figures, and one page that holds all of it."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from string import Template

import matplotlib
from matplotlib.figure import Figure

from studies.figures import arms_figure
from studies.figures_of_grids import curves_figure, epochs_figure
from studies.findings import Findings
from studies.overview import overview
from studies.runs import Runs
from studies.statistics import in_words
from studies.tables import MARK, NOTE, as_html, as_markdown, tables

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 16px/1.5 sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; }
img { max-width: 100%; }
table { border-collapse: collapse; font-size: 14px; }
th, td { border-bottom: 1px solid #ccc; padding: 0.2em 0.8em 0.2em 0; text-align: left; }
pre { background: #f4f4f4; overflow-x: auto; padding: 1em; }
</style>
<h1>$title</h1>
<p>$note</p>
$figures
$tables
<h2>Config</h2>
<pre>$config</pre>
</html>
""")


def write_report(runs: Runs, folder: Path, title: str, findings: Findings | None = None) -> list[Path]:
    """Write ``table.md``, figures as PNG and SVG, and ``report.html`` into a study's folder.

    The page holds its figures, so that it can be read anywhere, without a network.

    Args:
        runs: Runs of one study.
        folder: The folder of its results.
        title: Of the study.
        findings: Its measures besides accuracy; they follow the accuracies.

    Returns:
        The paths of the written files, the table first.
    """
    found, findings = tables(runs), findings or Findings()
    marked = any("*" in line[0] for table in found for line in table.lines)
    took = f"{len(runs.rows)} runs took {in_words(sum(row.seconds for row in runs.rows))} of CPU time."
    note = " ".join([NOTE, *([MARK] if marked else []), took, *findings.notes])
    found = [*overview(runs), *found, *findings.tables]
    table, page, about = folder / "table.md", folder / "report.html", folder / "study.yaml"
    table.write_text(f"# {title}\n\n{note}\n\n{as_markdown(found)}")
    drawn = {"figure": arms_figure(runs), "curves": curves_figure(runs), "epochs": epochs_figure(runs)}
    drawn |= findings.figures
    means = "means over seeds with 95 % intervals"
    captions = {"figure": "mean and 95 % interval over seeds", "curves": means, "epochs": means}
    captions |= findings.captions
    written: list[Path] = []
    for name, figure in drawn.items():
        if figure is not None:
            figure.suptitle(f"{title}: {captions[name]}")
            written += _saved(figure, folder / name)
    images = [path for path in written if path.suffix == ".svg"]
    page.write_text(
        PAGE.substitute(
            title=html.escape(title),
            note=html.escape(note),
            figures="\n".join(_embedded(path, f"{title}: {captions[path.stem]}") for path in images),
            tables=as_html(found),
            config=html.escape(about.read_text() if about.exists() else ""),
        )
    )
    return [table, *written, page]


def _saved(figure: Figure, path: Path) -> list[Path]:
    png, svg = path.with_suffix(".png"), path.with_suffix(".svg")
    # With a fixed salt and no date the same rows make the same file.
    with matplotlib.rc_context({"svg.hashsalt": "fpe_lightning"}):
        figure.savefig(png, dpi=110)
        figure.savefig(svg, metadata={"Date": None})
    return [png, svg]


def _embedded(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(caption)}" src="data:image/svg+xml;base64,{data}"></p>'
