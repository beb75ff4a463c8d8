"""The findings of a study besides accuracies, ready for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from studies.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Findings:
    """Tables and figures of a study's own measures.

    Attributes:
        notes: Sentences that say how to read them.
        tables: In their order.
        figures: By the name of their file.
        captions: One for each figure.

    Example:
        >>> Findings().tables
        ()
    """

    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
