"""The paper's experiments and ours: many runs, one table, one figure, one report.

From the command line, ``python -m studies boolean --config configs/studies/boolean.yaml`` runs a grid of
arms x settings x seeds into one folder: a CSV row a run, a Markdown table with paired differences, and a figure.
After a stop the same command goes on from the finished cells. ``--dry-run`` prints the grid and an estimate, ``--jobs``
takes several processes, and ``--ray`` a cluster.

A new study is a subclass of :class:`~studies.setting.Setting`, a line in :mod:`studies.registry` (or its import path in
place of the name), and a config.

From Python, :func:`~studies.stacked.train_together` trains many small networks of one shape at once.
"""

from studies.stacked import Stack as Stack
from studies.stacked import train_together as train_together
