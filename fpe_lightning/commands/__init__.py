"""The command ``fpe``: one file for each of its words, each loaded when it is asked for."""
