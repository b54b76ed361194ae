"""What every drawing of ours needs: text as it stands, and a file that is whole or absent."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from capbench.base.files import atomic_write

DPI = 110


def literal(text: str) -> str:
    """`text` for matplotlib, to which two dollar signs mean a formula."""
    return text.replace("$", r"\$")


def save_figure(figure: Figure, out: Path) -> None:
    """Write a figure into a PNG file. Raises CapbenchError when it cannot be written."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    atomic_write(out, buffer.getvalue())
