"""Processes that begin at once: forked from one that has imported what they need and has nothing else of ours."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path


def begin(work: Callable[[Path, Connection], None], folder: Path) -> tuple[BaseProcess, Connection]:
    """A process that does `work`, a function of a module, in `folder`; and what it sends."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["capbench.training.loop", "capbench.vision.features"])
    heard, told = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(folder, told))
    process.start()
    told.close()
    return process, heard
