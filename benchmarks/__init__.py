"""What the core costs, beside its strongest rivals in the same run: `pytest benchmarks --benchmark-only`."""
