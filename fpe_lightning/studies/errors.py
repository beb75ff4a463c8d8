"""What a study says when it cannot run."""

from __future__ import annotations


class StudyError(ValueError):
    """A study, arm, grid or folder that cannot be used; the message is one sentence for the command line."""
