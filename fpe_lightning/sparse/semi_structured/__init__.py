"""Linear layers with a 2:4 mask, for the 2:4 kernels of GPUs."""
