"""Weights of any disjoint split, stored at the size of their parent's weight."""
