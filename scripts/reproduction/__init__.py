"""The parts of ``scripts/reproduce.py``: what is run, how, what came of it, and the tables and pictures of that."""
