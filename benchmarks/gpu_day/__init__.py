"""The day a GPU is there: all kernels that a CPU cannot run, checked, trained with and timed by one command."""
