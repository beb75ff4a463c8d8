"""Layers that hold a sparse structure, and interchangeable ways to compute them."""
