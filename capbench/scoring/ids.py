"""Whose an output is: ids and file names of others, found among the images and captions of a split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Literal

import numpy as np
from jaxtyping import Int

from capbench.base.errors import CapbenchError, listed
from capbench.data.captions import Split, duplicates

Key = int | str  # an id, or an image's file name
UNKNOWN = -1
_ENDING = re.compile(r"\.\w{2,5}$")


@dataclass(frozen=True, eq=False)
class Side:
    """The images or the captions of a split, as outputs may name them.

    An image has an id and a file name. The name may lack its ending and its first folders, or have more folders in
    front; a number of COCO's, of twelve digits at its end, is an id.
    """

    noun: Literal["image", "caption"]
    split: Split = field(repr=False)

    @cached_property
    def ids(self) -> tuple[int, ...]:
        return self._of("ids")

    @cached_property
    def _places(self) -> dict[Key, int]:
        """By id, and by the ends of file names that only one image has."""
        return {number: place for place, number in enumerate(self.ids)} | self._named(shorter=True)

    @cached_property
    def _whole(self) -> dict[str, int]:
        return self._named(shorter=False)

    def _named(self, shorter: bool) -> dict[str, int]:
        names = enumerate(self._of("names") if self.noun == "image" else ())
        named = [(form, place) for place, name in names for form in _forms(name, shorter)]
        several = set(duplicates([form for form, _ in named]))
        return {form: place for form, place in named if form not in several}

    def place(self, key: Key) -> int:
        """The number of an image or caption within the split; UNKNOWN for one of another split, or of none."""
        if isinstance(key, int):
            return self._places.get(key, UNKNOWN)
        by_end = (self._places[form] for form in _forms(key, shorter=False) if form in self._places)
        by_name = (self._whole[form] for form in _forms(key, shorter=True) if form in self._whole)
        by_number = (self._places[number] for number in _numbers(key) if number in self._places)
        return next(chain(by_end, by_name, by_number), UNKNOWN)

    def places(self, keys: Iterable[Key]) -> Int[np.ndarray, " key"]:
        return np.fromiter(map(self.place, keys), np.int64)

    def refuse_ambiguous(self, source: str, keys: Iterable[Key]) -> None:
        """Raises CapbenchError for a number in text that is the id of one image and the file name of another."""
        for key in keys:
            if not isinstance(key, str) or not re.fullmatch(r"0|[1-9][0-9]{0,17}", key):
                continue
            numbered, named = self.place(int(key)), self.place(key)
            if numbered not in (UNKNOWN, named):
                names = self._of("names")
                raise CapbenchError(
                    f"{source}: {key!r} may be the id of {names[numbered]} or the file {names[named]}; "
                    "write file names with their endings"
                )

    def check(
        self, source: str, keys: Sequence[Key], places: Int[np.ndarray, " key"], wanted: Int[np.ndarray, " item"]
    ) -> None:
        """Raises CapbenchError with a list of the ids that come twice, are unknown, or are missing of `wanted`."""
        inside = np.isin(places, wanted)
        faults: dict[str, list[Key]] = {
            "twice": _same_place(keys, places),
            "unknown": list(dict.fromkeys(key for key, known in zip(keys, inside, strict=True) if not known)),
            "missing": [self.ids[place] for place in np.setdiff1d(wanted, places).tolist()],
        }
        wrong = [f"{len(ids):,} {fault} ({listed(ids)})" for fault, ids in faults.items() if ids]
        if wrong:
            expected = f"each {self.noun} of the {self.split.name} split of {self.split.dataset.name} once"
            hint = "" if inside.any() else self._elsewhere(keys)
            raise CapbenchError(f"{source} should have {expected}; of its ids, {'; '.join(wrong)}{hint}")

    def _elsewhere(self, keys: Sequence[Key]) -> str:
        """What to do when no id is of the split."""
        for name in self.split.dataset.splits:
            if (Side(self.noun, self.split.dataset.split(name)).places(keys) >= 0).all():
                return f"; the split {name} has them all: give --split {name}, or the data set that they are of"
        where = "imgid or cocoid" if self.noun == "image" else "sentid"
        return f"; ids are those of the split file ({where})"

    def _of(self, what: str) -> tuple:  # type: ignore[type-arg]
        index = self.split.image_index if self.noun == "image" else self.split.caption_index
        values = getattr(self.split.dataset, f"{self.noun}_{what}")
        return tuple(values[i] for i in index)


def _same_place(keys: Sequence[Key], places: Int[np.ndarray, " key"]) -> list[Key]:
    """The first of the keys that share an image or caption; unknown ones are told apart by their words."""
    pairs = zip(keys, places.tolist(), strict=True)
    identity = [(place, None) if place >= 0 else (place, key) for key, place in pairs]
    first = dict(zip(reversed(identity), reversed(keys), strict=True))
    return [first[each] for each in duplicates(identity)]


def _forms(name: str, shorter: bool) -> Iterator[str]:
    """How a file name may be written: without its ending and, if `shorter`, with fewer folders; longest first.

    >>> list(_forms("val2014/42.jpg", shorter=True))
    ['val2014/42.jpg', 'val2014/42', '42.jpg', '42']
    """
    parts = name.replace("\\", "/").split("/")
    for start in range(len(parts) if shorter else 1):
        form = "/".join(parts[start:])
        yield from dict.fromkeys((form, _ENDING.sub("", form)))


def _numbers(name: str) -> Iterator[int]:
    """The id that a text is, or COCO's in twelve digits at the end of a file's name.

    >>> list(_numbers("val2014/COCO_val2014_000000000042.jpg")), list(_numbers("7"))
    ([42], [7])
    """
    stem = _ENDING.sub("", name)
    if number := re.fullmatch(r"(\d{1,18})", name) or re.search(r"(?:^|[_/])(\d{12})$", stem):
        yield int(number[1])
