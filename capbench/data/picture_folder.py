"""The picture files of a folder."""

from __future__ import annotations

from pathlib import Path

from capbench.base.errors import CapbenchError
from capbench.base.files import printable

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def pictures_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files with a picture's suffix in a folder and below it, sorted; and what is named so but is no such file.

    Raises CapbenchError if there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise CapbenchError(f"there is no such folder: {printable(folder)}")
    named = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = [path for path in named if path.is_file() and not path.name.startswith("._")]
    if not files:
        raise CapbenchError(f"no picture in {printable(folder)}; looked for {', '.join(SUFFIXES)}")
    return files, sorted({*named} - {*files})
