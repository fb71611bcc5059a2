"""Benchmarks: `make bench`. Ratios against what users would pick instead, measured side by side."""
