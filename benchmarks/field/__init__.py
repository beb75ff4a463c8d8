"""Public projects with and without a split: ``python -m benchmarks.field``."""
