"""Measurements of speed and memory beside other libraries: `python -m tests.benchmarks.forward`, and so on.

Run by hand, never by the tests: the machine decides what a time means. Each compares us with a peer on the same work
in one run, interleaved, prints a table and appends a line to `results/`. Quote the ratios, not the times.
"""
