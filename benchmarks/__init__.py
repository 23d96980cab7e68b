"""Benchmarks beside a peer; see `python -m benchmarks --help` and docs/performance.md."""
