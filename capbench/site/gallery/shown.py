"""What a gallery shows of a run, as values that are kept in the cache: pages are drawn anew, models asked once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from capbench.base.cache import cache_folder
from capbench.base.files import atomic_write

VERSION = 1  # of what is kept: a change asks the models again


class Kept(BaseModel):
    """A part of what is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Written(Kept):
    """What a captioner writes about a picture."""

    kind: Literal["written"] = "written"
    image: int  # of the test pictures
    captions: tuple[str, ...]  # best first
    log_probs: tuple[float, ...]
    cider: float | None  # CIDEr-D of the best one; None where the run's record is gone
    recorded: str | None = None  # the caption that was scored, where it is another one than the best of today
    maps: tuple[str, ...] = ()  # of the best caption: data URLs of the attention at each word and at the end
    weights: tuple[float, ...] = ()  # the highest of each map


class Described(Kept):
    """What a captioner of regions writes about the regions of a picture."""

    kind: Literal["described"] = "described"
    image: int
    boxes: tuple[tuple[float, float, float, float], ...]  # fractions of width and height
    texts: tuple[str, ...]  # of each box
    log_probs: tuple[float, ...]


class Joined(Kept):
    """The region of each word of a picture's first caption."""

    kind: Literal["joined"] = "joined"
    image: int
    words: tuple[str, ...]
    boxes: tuple[tuple[float, float, float, float], ...]  # of all regions, the whole picture first
    scores: tuple[tuple[float, ...], ...]  # of each word for each region
    labels: tuple[int, ...]  # the region of each word
    beta: float  # the affinity
    right: int | None  # words of phrases whose region overlaps what they name; None where true boxes are unknown
    of: int = 0  # words of phrases


class Found(Kept):
    """What a query finds: pictures for a caption, or captions for a picture."""

    kind: Literal["found"] = "found"
    image: int  # the picture that asks, or that the caption belongs to
    caption: int | None  # of the test captions; None where the picture asks
    hits: tuple[int, ...]  # test captions or pictures, best first
    similarities: tuple[float, ...]
    rank: int  # of the first right one


Entry = Written | Described | Joined | Found


class Section(Kept):
    """Entries under one heading."""

    name: str  # of its anchor
    title: str
    entries: tuple[Entry, ...]


class Shown(Kept):
    """A whole gallery."""

    sections: tuple[Section, ...]
    common: tuple[Entry, ...]  # of the pictures that all runs on the data show


def kept(key: str) -> Shown | None:
    """What was kept under a key; None where there is nothing that can be read."""
    try:
        return Shown.model_validate_json(_place(key).read_bytes())
    except (OSError, ValidationError):
        return None


def keep(key: str, shown: Shown) -> None:
    """Keep what a gallery shows. Raises CapbenchError where the cache cannot be written."""
    atomic_write(_place(key), shown.model_dump_json().encode())


def _place(key: str) -> Path:
    return cache_folder() / "galleries" / f"{key}.json"
