"""`python -m capbench.cli`."""

from __future__ import annotations

from capbench.cli import main

main()
