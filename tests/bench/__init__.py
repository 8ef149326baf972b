"""Benchmarks of the backends: `make bench`, or `python -m tests.bench --help`."""
