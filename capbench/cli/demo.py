"""`capbench demo`: the page where trained models meet pictures of one's own."""

from __future__ import annotations

from pathlib import Path

from capbench.cli.options import Port
from capbench.cli.output import say


def demo(*, runs: Path = Path("runs"), images: Path | None = None, port: Port = 7860) -> None:
    """Open a page on this machine that captions, searches and aligns pictures of your own.

    Needs the extra: pip install 'capbench[demo]'. The page listens to this machine alone, and keeps no picture.

    Parameters
    ----------
    runs
        The folder of all runs.
    images
        The folder of images to search; the test images of a run's data if not given.
    port
        Where it listens; 0 takes any free port.
    """
    from capbench.demo.server import serve

    serve(runs, images, port, say)
