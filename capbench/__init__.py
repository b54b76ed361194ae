"""capbench: reproductions of the classic image-caption papers, measured under one protocol."""

__version__ = "0.1.0"
