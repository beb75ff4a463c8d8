"""What changes: find the widths that can grow, split their neurons, keep the non-zero budget."""
