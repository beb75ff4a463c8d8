"""Fixed Parameter Expansion (arXiv 2510.04500) for PyTorch and Lightning."""

__version__ = "0.1.0"
