"""Benchmarks beside a peer; see `python -m tools.benchmark --help` and docs/performance.md."""
