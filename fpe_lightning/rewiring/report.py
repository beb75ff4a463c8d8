"""What an update of the masks moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RewireReport:
    """One update of the masks.

    Attributes:
        nonzeros_before: Parameters that may be non-zero before it, over the whole model.
        nonzeros_after: The same after it; equal.
        held: For each weight by name, how many of its entries may be non-zero after it.
        dropped: How many it lost.
        grown: How many it got; equal to ``dropped`` where weights do not move between layers.
        left_out: A reason for each masked weight that could not move.

    Example:
        >>> RewireReport(8, 8, held={"0.weight": 8}, dropped={"0.weight": 2}, grown={"0.weight": 2}).moved
        0.25
    """

    nonzeros_before: int
    nonzeros_after: int
    held: Mapping[str, int]
    dropped: Mapping[str, int]
    grown: Mapping[str, int]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def moved(self) -> float:
        """Share of the non-zeros of the rewired weights that moved."""
        return sum(self.grown.values()) / max(sum(self.held.values()), 1)

    def __str__(self) -> str:
        lines = [
            f"{self.moved:.1%} of {sum(self.held.values())} weights moved, of {self.nonzeros_after} non-zeros before "
            "and after."
        ]
        lines += [
            f"  {name}: {self.dropped[name]} dropped, {self.grown[name]} grown, {held} held"
            for name, held in self.held.items()
        ]
        lines += [f"  {name}: left out, as {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines)
