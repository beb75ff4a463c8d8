"""Every claim of speed, memory and coverage, as a command that prints it."""
