"""From a caption to its words: one tokeniser for the captions of a data set, its queries and what a model writes of it.

The words of each, joined by spaces, give the same words again.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

from capbench.base.errors import unknown

KARPATHY, UNICODE, WHITESPACE = "karpathy", "unicode", "whitespace"

_APOSTROPHES = "'\u2018\u2019\u02bc\uff07"
_ALONE = re.compile("[\u3005\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30ff\u31f0-\u31ff\uff66-\uff9d\u3400-\u9fff"
                    "\uf900-\ufaff\U00020000-\U0003ffff]")  # fmt: skip
_ZERO_WIDTH_SPACE = "\u200b"


def tokenize(text: str, tokenizer: str = KARPATHY) -> list[str]:
    """The words of a caption, by the name of a tokeniser; see `TOKENIZERS`. Raises CapbenchError for another name.

    >>> tokenize("A man in a T-shirt."), tokenize("Der Hund l\\u00e4uft!", "unicode")
    (['a', 'man', 'in', 'a', 'tshirt'], ['der', 'hund', 'l\u00e4uft'])
    """
    if tokenizer not in TOKENIZERS:
        raise unknown("tokeniser", tokenizer, TOKENIZERS)
    return TOKENIZERS[tokenizer](text)


def karpathy(text: str) -> list[str]:
    """As in Karpathy's split files: lower case, nothing but a-z and 0-9; "T-shirt" becomes "tshirt"."""
    return re.sub(r"[^a-z0-9\s]", "", text.lower()).split()


def unicode(text: str) -> list[str]:
    """Runs of letters, marks and digits of any script, composed (NFC) and case-folded; apostrophes are dropped.

    Chinese and Japanese have no spaces: each ideograph and each kana is a word of its own. Thai, Lao, Khmer and Burmese
    have none either, and a run of theirs stays one word: split their captions first, and take `whitespace`.
    """
    folded = unicodedata.normalize("NFD", text).casefold()
    return unicodedata.normalize("NFC", folded).translate(_LETTERS).split()


def whitespace(text: str) -> list[str]:
    """What stands between white space, as it is: for captions that are tokenised already."""
    return text.split()


TOKENIZERS: Mapping[str, Callable[[str], list[str]]] = {
    KARPATHY: karpathy,
    UNICODE: unicode,
    WHITESPACE: whitespace,
}


def spelling(word: str, tokenizer: str) -> str:
    """What is the same of words that differ in case and punctuation: the letters that the tokeniser keeps, in a run."""
    return "".join(tokenize(word, UNICODE if tokenizer == WHITESPACE else tokenizer))


class _Letters(dict[int, str]):
    """What becomes of a character, for `str.translate`: found at its first use."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if _ALONE.match(character):
            kept = f" {character} "
        elif character in _APOSTROPHES:
            kept = ""
        elif category[0] in "LMN":
            kept = character
        else:  # joiners and soft hyphens stand inside a word
            kept = "" if category == "Cf" and character != _ZERO_WIDTH_SPACE else " "
        self[code] = kept
        return kept


_LETTERS = _Letters()
