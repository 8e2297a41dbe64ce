"""A randomised stress test: writers, faults, and what must be true of the stored documents at the end.

`PYTHONPATH=examples:tests python -m soak --help`. It starts its own servers and ends everything that it has started.
"""
