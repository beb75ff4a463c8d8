"""One row of the table: what happened to one project."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Row:
    """What happened to one project.

    Attributes:
        project: Name of the project.
        version: Versions of its packages.
        ran: ``"yes"`` if it trained without a split; ``"not installed"`` or an error otherwise.
        split: Sites that were split, and the widths that were looked at.
        before: Non-zero parameters before the split, as the report counts them.
        after: Entries that are not zero right after the split, counted without this package.
        end: Entries that are not zero at the end of training, counted without this package.
        counted: What ``count_nonzeros`` says at the end.
        plain: Whether the plain file loads without this package and computes the same.
        loader: Whether the project's own loader reads the result and computes the same.
        resumes: ``"bit-identical"``, ``"goes on"`` or what went wrong.
        note: The sentence of a refusal, or an error.
        seconds: Time of the whole row.
    """

    project: str
    version: str = ""
    ran: str = ""
    split: str = ""
    before: int | None = None
    after: int | None = None
    end: int | None = None
    counted: int | None = None
    plain: str = ""
    loader: str = ""
    resumes: str = ""
    note: str = ""
    seconds: float = 0.0

    @property
    def kept(self) -> str:
        """Whether no non-zero was added: ``"yes"``, ``"no"``, or nothing where nothing was split.

        Where a project writes weights by itself, and ``count_nonzeros`` warns and counts them, it is ``"no, told"``.
        """
        if self.before is None or self.after is None or self.end is None:
            return ""
        if max(self.after, self.end) <= self.before:
            return "yes"
        return "no, told" if self.counted is not None and self.counted >= self.end and "not zero" in self.note else "no"

    @property
    def ok(self) -> bool:
        """Whether the project trained, split, kept its non-zeros and came back from every file; or was refused.

        Example:
            >>> Row("a", ran="not installed").ok
            True
        """
        if self.ran != "yes" or self.split.startswith("refused"):
            return self.ran in ("yes", "not installed")
        if self.split == "error":
            return False
        if self.kept == "":  # nothing to split, for a reason that is told
            return bool(self.note)
        return self.kept != "no" and not any(
            each.startswith(("no:", "differs")) for each in (self.plain, self.loader, self.resumes)
        )
