"""Every speed and memory claim, as a command that prints it."""
