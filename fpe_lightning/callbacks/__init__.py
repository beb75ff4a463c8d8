"""When it happens: the only package that knows the Trainer."""
