"""The time and memory of the core beside its strongest baselines: `pytest benchmarks --benchmark-only`."""
