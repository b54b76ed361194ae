"""What torchrun tells a process that it starts, from the environment; torch is not needed to read it."""

from __future__ import annotations

import os

_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started_together() -> int:
    """How many processes were started together; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if all(os.environ.get(name) for name in _TOLD) else 1


def name_of_this() -> str:
    """What sets the messages of this process apart from those of the others; empty where it is the only one."""
    return f"process {os.environ['RANK']}: " if started_together() > 1 else ""
