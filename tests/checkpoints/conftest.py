"""Every test begins with the same random numbers, whatever ran before it."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Weights and inputs that a test draws without a generator of its own do not depend on the order of tests."""
    torch.manual_seed(0)
