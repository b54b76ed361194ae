"""MkDocs joins the pages into the site."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from capbench.base.errors import CapbenchError
from capbench.leaderboard import absent

if TYPE_CHECKING:
    from capbench.site.gallery.finding import Gallery

MARK = ".capbench-site"  # in every folder that a site was built in
FOR_SERVERS = ("404.html", "sitemap.xml", "sitemap.xml.gz")  # MkDocs makes them, and a folder has no use for them
EPOCH = "0"  # the date of every build: same records, same bytes

Galleries = Callable[[], "Sequence[Gallery]"]  # called once all is well: models are asked for minutes


def build(leaderboards: Path, out: Path, galleries: Galleries = list) -> Path:
    """Build the site of a leaderboards folder, and of galleries, in `out`; return its first page.

    A site that is there already is replaced when the new one is whole. Raises CapbenchError without MkDocs, for a
    folder without records, and for an `out` that is something else than a site.
    """
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise CapbenchError(f"{out} is there already and is no site of capbench; choose another folder with --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _built(leaderboards, galleries, out.parent) as made:
            if out.exists():
                out.rename(made.parent / "before")  # removed with the folder that both are in
            made.rename(out)
    except OSError as error:
        raise CapbenchError(f"cannot write the site {out}: {error}") from error
    return out / "index.html"


def stale(leaderboards: Path, out: Path, galleries: Galleries = list) -> list[Path]:
    """The files of a site that are missing, differ from what records and runs give, or should not be there.

    Raises CapbenchError as `build` does, and for an `out` that is no site.
    """
    if not (out / MARK).is_file():
        raise CapbenchError(f"{out} is no site of capbench; build one with `capbench site --out {out}`")
    with _built(leaderboards, galleries) as made:
        paths = sorted(_paths(made) | _paths(out))
        return [path for path in paths if _bytes(made / path) != _bytes(out / path)]


@contextmanager
def _built(leaderboards: Path, galleries: Galleries, beside: Path | None = None) -> Iterator[Path]:
    """A folder with the site, gone afterwards unless it was moved."""
    if find_spec("material") is None or find_spec("mkdocstrings") is None:
        raise CapbenchError("the site is made by MkDocs, which is not installed; pip install 'capbench[site]'")
    if reason := absent(leaderboards):
        raise CapbenchError(reason)
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config import load_config

    from capbench.site.configuration import configuration
    from capbench.site.pages import documents

    with tempfile.TemporaryDirectory(prefix=".capbench-site-", dir=beside and beside.resolve()) as folder:
        sources, made = Path(folder) / "documents", Path(folder) / "site"
        files = documents(leaderboards, galleries())
        for path, content in files.items():
            (sources / path).parent.mkdir(parents=True, exist_ok=True)
            (sources / path).write_bytes(content)
        settings = Path(folder) / "mkdocs.yml"
        settings.write_text(json.dumps(configuration(set(files), sources, made)))  # JSON is YAML, too
        with _quiet(), _dated():
            mkdocs_build(load_config(str(settings)))
        for name in FOR_SERVERS:
            (made / name).unlink()
        (made / MARK).touch()
        yield made


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MkDocs' own report; its errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _dated() -> Iterator[None]:
    before = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = EPOCH
    try:
        yield
    finally:
        os.environ.pop("SOURCE_DATE_EPOCH")
        if before is not None:
            os.environ["SOURCE_DATE_EPOCH"] = before


def _paths(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
