"""Words and their numbers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import NonNegativeInt

from capbench.base.errors import CapbenchError
from capbench.base.files import atomic_write, fingerprint
from capbench.data.captions import duplicates
from capbench.data.checked_json import Checked, parse_json

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")


def tokenize(text: str) -> list[str]:
    """The words of a caption: lower case, everything deleted but a-z, 0-9 and white space ("T-shirt" -> "tshirt").

    It gives the tokens that the split files of Karpathy hold.
    """
    return re.sub(r"[^a-z0-9\s]", "", text.lower()).split()


@dataclass(frozen=True)
class Vocabulary:
    """Numbers for words: 0 to 3 are padding, start, end and unknown, then come `words` in order.

    `counts` says how often each word occurred where the vocabulary was built. `unknown_count` is the number of
    tokens there that were too rare to be kept. Raises CapbenchError when these disagree.
    """

    words: tuple[str, ...] = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)
    unknown_count: int = 0

    def __post_init__(self) -> None:
        if len(self.words) != len(self.counts):
            raise CapbenchError(f"a vocabulary of {len(self.words)} words has {len(self.counts)} counts")
        twice = duplicates(self.words) or [word for word in self.words if word in SPECIAL]
        if twice:
            raise CapbenchError(f"the vocabulary has {twice[0]!r} twice")

    @classmethod
    def build(cls, tokens: Iterable[Sequence[str]], min_count: int) -> Vocabulary:
        """The words that occur `min_count` times or more, the frequent first and equals by the alphabet.

        Give the training captions alone. A token that is spelled like a special one counts as too rare. Raises
        CapbenchError when no word is left.
        """
        found = Counter(word for caption in tokens for word in caption)
        kept = sorted((-count, word) for word, count in found.items() if count >= min_count and word not in SPECIAL)
        if not kept:
            raise CapbenchError(f"no word occurs {min_count} times or more; lower min_count or give more captions")
        counts = tuple(-count for count, _ in kept)
        return cls(tuple(word for _, word in kept), counts, found.total() - sum(counts))

    def __len__(self) -> int:
        """How many numbers there are, with the four special ones."""
        return len(SPECIAL) + len(self.words)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each word; the special ones are not in it, so no caption can spell them."""
        return {word: number for number, word in enumerate(self.words, start=len(SPECIAL))}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the words in order."""
        return fingerprint(self.words)

    def encode(self, tokens: Sequence[str]) -> list[int]:
        """[START, a number a token, END]; an unknown token becomes UNKNOWN."""
        return [START, *(self.numbers.get(token, UNKNOWN) for token in tokens), END]

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """The words up to the first END; START and PAD are left out, UNKNOWN is "<unknown>".

        Raises CapbenchError for a number outside the vocabulary.
        """
        words: list[str] = []
        for number in map(int, numbers):
            if number == END:
                break
            if not 0 <= number < len(self):
                raise CapbenchError(f"the number {number} is outside the vocabulary of {len(self)}; is it another one?")
            if number == UNKNOWN:
                words.append(SPECIAL[UNKNOWN])
            elif number > UNKNOWN:
                words.append(self.words[number - len(SPECIAL)])
        return words

    def save(self, path: Path) -> None:
        """Write JSON that `load` reads."""
        content = {"words": self.words, "counts": self.counts, "unknown_count": self.unknown_count}
        atomic_write(path, json.dumps(content, indent=0).encode())

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote. Raises CapbenchError for a pickle (never opened) and for any other content."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CapbenchError(f"cannot read the vocabulary {path}: {error.strerror or error}") from error
        if _looks_pickled(content):
            raise CapbenchError(
                f"{path} is a pickle, which could run code when opened, and is refused; export it to JSON in the "
                'project that made it: {"words": [...], "counts": [...]}'
            )
        file = parse_json(content, path, _VocabularyFile)
        try:
            return cls(tuple(file.words), tuple(file.counts), file.unknown_count)
        except CapbenchError as error:
            raise CapbenchError(f"{path}: {error}") from error


class _VocabularyFile(Checked):
    words: list[str]
    counts: list[NonNegativeInt]
    unknown_count: NonNegativeInt = 0


def _looks_pickled(content: bytes) -> bool:
    """Protocol 2 and above start with 0x80; protocols 0 and 1 with another opcode, often "(", and end with a dot."""
    return content[:1] in (b"\x80", b"(") or (content.rstrip()[-1:] == b"." and content.lstrip()[:1] not in b"{[\xef")
