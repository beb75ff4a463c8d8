"""Layers that store and compute dense blocks alone."""
