"""The paper's experiments and ours: many runs, one table, one figure, one report."""
