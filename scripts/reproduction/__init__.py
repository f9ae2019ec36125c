"""The parts of ``scripts/reproduce.py``: the rows, how they are run, and the summaries, tables and pictures."""
