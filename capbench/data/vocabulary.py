"""Vocabularies: words and their numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import NonNegativeInt

from capbench.base.errors import CapbenchError, unknown
from capbench.base.files import atomic_write, fingerprint, read_bytes
from capbench.data.captions import duplicates
from capbench.data.checked_json import Checked, parse_json
from capbench.data.tokenizers import KARPATHY, TOKENIZERS, spelling, tokenize

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")


@dataclass(frozen=True)
class Vocabulary:
    """Numbers for words: 0 to 3 are padding, start, end and unknown, then `words` in order.

    Raises CapbenchError when words and counts disagree, or a word is there twice.

    >>> Vocabulary.build([["a", "dog"], ["a", "cat"]], min_count=1).encode(["a", "bird"])
    [1, 4, 3, 2]
    """

    words: tuple[str, ...] = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)  # how often each word occurred in the text it was built from
    unknown_count: int = 0  # tokens of that text that were too rare to keep
    tokenizer: str = KARPATHY  # of that text, and of what is asked in its words

    def __post_init__(self) -> None:
        if len(self.words) != len(self.counts):
            raise CapbenchError(f"a vocabulary of {len(self.words)} words has {len(self.counts)} counts")
        if self.tokenizer not in TOKENIZERS:
            raise unknown("tokeniser", self.tokenizer, TOKENIZERS)
        twice = duplicates(self.words) or [word for word in self.words if word in SPECIAL]
        if twice:
            raise CapbenchError(f"the vocabulary has {twice[0]!r} twice")

    @classmethod
    def build(cls, tokens: Iterable[Sequence[str]], min_count: int, tokenizer: str = KARPATHY) -> Vocabulary:
        """The words that occur at least `min_count` times in the training captions, by frequency, then alphabet.

        A token spelled like a special one counts as too rare. Raises CapbenchError if no word remains.
        """
        occurrences = Counter(word for caption in tokens for word in caption)
        frequent = (word for word, count in occurrences.items() if count >= min_count and word not in SPECIAL)
        words = tuple(sorted(frequent, key=lambda word: (-occurrences[word], word)))
        if not words:
            raise CapbenchError(f"no word occurs {min_count} times or more; lower min_count or give more captions")
        counts = tuple(occurrences[word] for word in words)
        return cls(words, counts, occurrences.total() - sum(counts), tokenizer)

    def __len__(self) -> int:
        """How many numbers there are, the four special ones included."""
        return len(SPECIAL) + len(self.words)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each word; without the special ones, so no caption can spell them."""
        return {word: number for number, word in enumerate(self.words, start=len(SPECIAL))}

    @cached_property
    def _spellings(self) -> dict[str, int]:
        """The number of the most frequent word of a `spelling`: "Red" for "red"."""
        spelled = ((spelling(word, self.tokenizer), number) for word, number in reversed(self.numbers.items()))
        return {letters: number for letters, number in spelled if letters}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the words in order."""
        return fingerprint(self.words)

    def encode(self, tokens: Sequence[str]) -> list[int]:
        """START, a number for each token, END; an unknown token becomes UNKNOWN."""
        return [START, *(self.numbers.get(token, UNKNOWN) for token in tokens), END]

    def tokenize(self, text: str) -> list[str]:
        """The words of a sentence, by the tokeniser of the text that the vocabulary was built from."""
        return tokenize(text, self.tokenizer)

    def encode_text(self, text: str) -> list[int]:
        """As `encode`, the tokens those of `tokenize` or, where the data have others, their nearest spelling.

        >>> Vocabulary(("Red", "T-shirt"), (2, 1)).encode_text("A red t-shirt")
        [1, 3, 4, 5, 2]
        """
        return [START, *map(self._nearest, self.tokenize(text)), END]

    def _nearest(self, word: str) -> int:
        return self.numbers.get(word) or self._spellings.get(spelling(word, self.tokenizer), UNKNOWN)

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """The words before the first END, without START and PAD; UNKNOWN is "<unknown>".

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
        content = {
            "words": self.words,
            "counts": self.counts,
            "unknown_count": self.unknown_count,
            "tokenizer": self.tokenizer,
        }
        atomic_write(path, json.dumps(content, indent=0).encode())

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote. Raises CapbenchError for anything else; a pickle is never opened."""
        content = refuse_pickle(path, 'in the project that made it: {"words": [...], "counts": [...]}')
        file = parse_json(content, path, _VocabularyFile)
        try:
            return cls(tuple(file.words), tuple(file.counts), file.unknown_count, file.tokenizer)
        except CapbenchError as error:
            raise CapbenchError(f"{path}: {error}") from error


def refuse_pickle(path: Path, how: str) -> bytes:
    """The content of a vocabulary's file. Raises CapbenchError for a pickle, saying how to export it to JSON."""
    content = read_bytes(path, f"the vocabulary {path}")
    # Pickles of protocol 2 and above start with 0x80; older ones often with "(", and end with a dot.
    old_pickle = content.rstrip()[-1:] == b"." and content.lstrip()[:1] not in b"{[\xef"
    if old_pickle or content[:1] in (b"\x80", b"("):
        raise CapbenchError(
            f"{path} is a pickle, which could run code when opened, and is refused; export it to JSON {how}"
        )
    return content


class _VocabularyFile(Checked):
    words: list[str]
    counts: list[NonNegativeInt]
    unknown_count: NonNegativeInt = 0
    tokenizer: str = KARPATHY
