"""How new and how varied generated captions are. Captions are compared as words, by a tokeniser of the data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from capbench.base.errors import CapbenchError
from capbench.data.tokenizers import KARPATHY, tokenize
from capbench.metrics.captioning import bleu, bleu_statistics


def novelty(captions: Sequence[str], training_captions: Iterable[str], tokenizer: str = KARPATHY) -> float:
    """Percentage of the captions that are not a training caption, word for word (Show and Tell, section 4.3.4).

    Raises CapbenchError when there is no caption.
    """
    known = {tuple(tokenize(caption, tokenizer)) for caption in training_captions}
    return 100.0 * sum(words not in known for words in _words(captions, tokenizer)) / len(captions)


def distinct_n(captions: Sequence[str], n: int, tokenizer: str = KARPATHY) -> float:
    """Different n-grams in percent of all words (distinct-n: Li et al. 2016, section 5.1).

    0 when there is no word. Raises CapbenchError when there is no caption.
    """
    words = _words(captions, tokenizer)
    ngrams = {caption[i : i + n] for caption in words for i in range(len(caption) - n + 1)}
    return 100.0 * len(ngrams) / max(1, sum(map(len, words)))


def vocabulary_used(captions: Iterable[str], tokenizer: str = KARPATHY) -> int:
    """The number of different words."""
    return len({word for caption in captions for word in tokenize(caption, tokenizer)})


def self_bleu(lists: Sequence[Sequence[str]], tokenizer: str = KARPATHY) -> float:
    """Mutual BLEU-4 x 100 of n-best lists: each caption against the others of its list, as one corpus; low is varied.

    Source: Zhu et al. 2018, section 3 (Self-BLEU), within the list of an image. Raises CapbenchError when there is no
    list, or when one has fewer than two captions.
    """
    short = next((i for i, captions in enumerate(lists) if len(captions) < 2), None if lists else 0)
    if short is not None:
        raise CapbenchError(f"self-BLEU needs two captions or more in each list; list {short} has not")
    texts = [[" ".join(tokenize(caption, tokenizer)) for caption in captions] for captions in lists]
    candidates = [caption for captions in texts for caption in captions]
    others = [captions[:i] + captions[i + 1 :] for captions in texts for i in range(len(captions))]
    return float(bleu(bleu_statistics(candidates, others).sum(0))[3])


def _words(captions: Sequence[str], tokenizer: str) -> list[tuple[str, ...]]:
    if not captions:
        raise CapbenchError("there is no caption to look at")
    return [tuple(tokenize(caption, tokenizer)) for caption in captions]
