"""Random draws that are the same on every platform."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

Option = TypeVar("Option")


class Dice:
    """Random draws from a seed and a label such as ("scenes", "train", 7), the same on every platform.

    >>> Dice(0, "example").pick(["red", "green", "blue"])
    'red'
    """

    def __init__(self, seed: int, *label: str | int) -> None:
        digest = hashlib.sha256("/".join(map(str, (seed, *label))).encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:16], "big")).random

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return int(self._random() * count)

    def pick(self, options: Sequence[Option], odds: Sequence[int] | None = None) -> Option:
        """One of `options`; `odds` are integer weights, and those beyond the last option are ignored."""
        if odds is None:
            return options[self.below(len(options))]
        mark = self.below(sum(odds[: len(options)]))
        for option, weight in zip(options, odds, strict=False):
            mark -= weight
            if mark < 0:
                return option
        raise AssertionError("the odds are all zero")
