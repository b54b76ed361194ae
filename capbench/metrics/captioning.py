"""Caption metrics as coco-caption defines them: BLEU, METEOR, ROUGE-L, CIDEr-D and SPICE, and intervals for them.

BLEU and METEOR are also given "as written", without a tokeniser: metrics.py of Show, Attend and Tell's released code
runs the scorers on text files, whose references keep their capitals and full stops. A candidate begins with a capital
letter and ends in " ." there.

A corpus value of BLEU or METEOR comes from counts summed over the images, not from the mean of their values: those two
keep the counts, from which intervals are drawn; the others keep a value for each image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num
from numpy.typing import NDArray
from pycocoevalcap.bleu import bleu_scorer
from pycocoevalcap.cider import cider_scorer
from pycocoevalcap.rouge.rouge import Rouge

from capbench.base.errors import CapbenchError, listed
from capbench.data.captions import Split, one_line
from capbench.data.tokenizers import tokenize
from capbench.metrics.jars import (
    TIME_LIMIT,
    find_java,
    meteor,
    meteor_statistics,
    ptb_tokenize,
    simple_tokenize,
    spice,
)
from capbench.metrics.significance import Interval, difference_percentiles, percentiles, resamples, seeds_drawn

Score = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class CaptionScores:
    """The scores of one set of candidates. A metric that could not be computed is absent; `notes` says why.

    `metrics`, all x 100: bleu1 to bleu4, bleu1_no_bp to bleu4_no_bp (without brevity penalty), meteor, all of these
    with _as_written after the name (bleu1_as_written_no_bp, meteor_as_written), rouge_l, cider (CIDEr-D) and spice.
    """

    metrics: dict[str, float]
    per_image: dict[str, NDArray[np.float64]] = field(repr=False)  # meteor, rouge_l, cider and spice, [image]
    # of bleu, meteor, bleu_as_written and meteor_as_written, [image, statistic]
    statistics: dict[str, NDArray[np.int64]] = field(repr=False)
    notes: tuple[str, ...] = ()


class CaptionScorer:
    """The references of some images, tokenised once; `score` takes one candidate an image, as often as you like.

        scorer = CaptionScorer([["A dog runs.", "A brown dog is running."], ["Two men talk."]])
        scorer.score(["a dog is running", "two men"]).metrics["cider"]

    Captions are raw text; an image may have any number of references. Without Java, or where the PTB tokeniser fails,
    `simple_tokenize` stands in for it; metrics of Java programs that fail are absent; and the notes say so. `timeout`
    is for each run of Java, in seconds.

    All of this is made for English. For captions of another language `tokenizer` names one of
    `capbench.data.tokenizers`: BLEU, ROUGE-L and CIDEr-D count its words, without Java; METEOR, SPICE and what is
    "as written" are absent, and the notes say so. `of` decides by the captions of a data set.
    Raises CapbenchError when there is no image, or when an image has no reference.
    """

    def __init__(self, references: Sequence[Sequence[str]], timeout: float = TIME_LIMIT, tokenizer: str = "") -> None:
        _check_references(references)
        self.timeout, self.tokenizer, self.written = timeout, tokenizer, references
        self.without_ptb = "" if find_java() else "no Java was found"  # why; empty where the PTB tokeniser works
        try:
            self._tokenize_references()
        except CapbenchError as error:
            self._do_without_ptb(error)

    def _tokenize_references(self) -> None:
        tokenised = iter(self.tokenize([caption for own in self.written for caption in own]))
        self.references = [[next(tokenised) for _ in own] for own in self.written]
        self._cider = cider_scorer.CiderScorer()
        self._cider.crefs = [cider_scorer.cook_refs(own) for own in self.references]
        self._cider.compute_doc_freq()

    def _do_without_ptb(self, error: CapbenchError) -> None:
        """A training of days must not end without a record because a tokeniser fails after it."""
        self.without_ptb = str(error)
        self._tokenize_references()

    @classmethod
    def of(cls, split: Split, timeout: float = TIME_LIMIT) -> CaptionScorer:
        """The scorer of a split's captions, by the tokeniser that the data set has for metrics.

        With one of its own, the references are the tokens of the data set.
        """
        tokenizer = split.dataset.metric_tokenizer
        references = [" ".join(words) for words in split.tokens] if tokenizer else split.captions
        return cls(split.of_images(references), timeout, tokenizer)

    def tokenize(self, captions: Sequence[str]) -> list[str]:
        """The tokens of each caption between single spaces, by the tokeniser that the references went through."""
        if self.tokenizer:
            return [" ".join(tokenize(caption, self.tokenizer)) for caption in captions]
        return simple_tokenize(captions) if self.without_ptb else ptb_tokenize(captions, self.timeout)

    def score(self, candidates: Sequence[str]) -> CaptionScores:
        """All metrics of one candidate an image, in the order of the references. An empty one counts as any other.

        A METEOR or SPICE that dies or stalls is absent, with its last words in the notes.
        Raises CapbenchError when the number of candidates is not that of the images.
        """
        if len(candidates) != len(self.references):
            images = f"{len(self.references):,} images"
            raise CapbenchError(f"{len(candidates):,} candidates for {images}: give one an image")
        try:
            captions = self.tokenize(candidates)
        except CapbenchError as error:
            self._do_without_ptb(error)
            captions = self.tokenize(candidates)
        counts = {"bleu": bleu_statistics(captions, self.references)}
        per_image = {"rouge_l": self._rouge_l(captions)}
        notes = list(self._tokenizer_notes(captions))
        if len(captions) > 1:
            per_image["cider"] = self._cider_d(captions)
        else:
            notes.append(
                "cider: not defined for a single image, because words are weighted by how many images have them"
            )
        if not self.tokenizer:
            notes += self._made_for_english(candidates, captions, counts, per_image)
        metrics = {name: float(values.mean()) for name, values in per_image.items()}
        for rule in ("", "_as_written") if not self.tokenizer else ("",):
            for suffix, penalty in (("", True), ("_no_bp", False)):
                values = bleu(counts[f"bleu{rule}"].sum(0), brevity_penalty=penalty)
                metrics |= {f"bleu{n}{rule}{suffix}": float(value) for n, value in enumerate(values, start=1)}
            if f"meteor{rule}" in counts:
                metrics[f"meteor{rule}"] = float(meteor(counts[f"meteor{rule}"].sum(0)))
        if "meteor" in counts:
            per_image["meteor"] = meteor(counts["meteor"])
        return CaptionScores(metrics, per_image, counts, tuple(notes))

    def _made_for_english(
        self,
        candidates: Sequence[str],
        captions: list[str],
        counts: dict[str, NDArray[np.int64]],
        per_image: dict[str, NDArray[np.float64]],
    ) -> Iterator[str]:
        """METEOR, SPICE and what is "as written" into `counts` and `per_image`; why one of them is absent."""
        written = list(map(_sentence, candidates))
        counts["bleu_as_written"] = bleu_statistics(written, self.written)
        try:
            both = meteor_statistics([*captions, *written], [*self.references, *self.written], self.timeout)
            counts["meteor"], counts["meteor_as_written"] = np.split(both, 2)
        except CapbenchError as error:
            yield f"meteor: {error}"
        try:
            per_image["spice"] = spice(captions, self.references, self.timeout)
        except CapbenchError as error:
            yield f"spice: {error}"

    def _rouge_l(self, captions: list[str]) -> NDArray[np.float64]:
        pairs = zip(captions, self.references, strict=True)
        return 100.0 * np.array([Rouge().calc_score([caption], own) for caption, own in pairs], dtype=np.float64)

    def _cider_d(self, captions: list[str]) -> NDArray[np.float64]:
        scorer = copy(self._cider)
        scorer.ctest = [cider_scorer.cook_test(caption) for caption in captions]
        scorer.document_frequency = scorer.document_frequency.copy()
        return 100.0 * np.array(scorer.compute_cider(), dtype=np.float64)

    def _tokenizer_notes(self, captions: list[str]) -> Iterator[str]:
        if self.tokenizer:
            yield f"tokeniser: {self.tokenizer}, of the data set; the PTB tokeniser is made for English"
            for name in ("meteor", "spice"):
                yield f"{name}: made for English, and these captions are not in its letters"
        elif self.without_ptb:
            reason = f"because {self.without_ptb}; published numbers use the PTB tokeniser"
            yield f"tokeniser: simple_tokenize, {reason}"
        if empty := captions.count(""):
            yield f"candidates: {empty:,} of {len(captions):,} have no word"


def bleu_statistics(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Int[np.ndarray, "image 10"]:
    """What BLEU counts for each candidate against all its references, from tokens between spaces; see `bleu`.

    Clipped matches of 1- to 4-grams, the candidate's 1- to 4-grams, its words, and the words of the reference closest
    in length, the shorter of two as close.
    """
    pairs = zip(candidates, map(bleu_scorer.cook_refs, references), strict=True)
    counts = [bleu_scorer.cook_test(candidate, cooked, "closest") for candidate, cooked in pairs]
    rows = [[*c["correct"], *c["guess"], c["testlen"], c["reflen"]] for c in counts]
    return np.array(rows, dtype=np.int64).reshape(-1, 10)


def bleu(statistics: Num[np.ndarray, "*sample 10"], brevity_penalty: bool = True) -> Float[np.ndarray, "*sample 4"]:
    """BLEU-1 to BLEU-4 x 100, [..., 4], from `bleu_statistics`: `bleu(statistics.sum(0))` is that of the corpus.

    `bleu(statistics)` is that of each image; the corpus value is not their mean. Division by zero is avoided as in
    coco-caption; nltk counts one n-gram where a candidate has fewer than four words, and leaves out an order without a
    match. Show, Attend and Tell (section 5) has no brevity penalty. Source: Papineni et al. 2002, section 2.3.
    """
    counts = statistics.astype(np.float64)
    matches, ngrams, words, reference_words = np.split(counts, (4, 8, 9), axis=-1)
    precision = (matches + 1e-15) / (ngrams + 1e-9)
    value: NDArray[np.float64] = np.cumprod(precision, axis=-1) ** (1.0 / np.arange(1, 5))
    if brevity_penalty:
        value = value * np.exp(np.minimum(0.0, 1.0 - (reference_words + 1e-9) / (words + 1e-15)))
    return 100.0 * value


def bootstrap_corpus(
    statistics: Int[np.ndarray, "image statistic"], score: Score, samples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile interval of a corpus value by resampling images: `significance.bootstrap` for BLEU and METEOR.

    `score` maps summed statistics [..., statistic] to values [...]: it is `meteor`, or
    `lambda sums: bleu(sums)[..., 3]`. Raises CapbenchError when there is no image.
    """
    draws = _resampled([statistics[None]], score, samples, np.random.default_rng(seed))[0]
    return percentiles(float(score(statistics.sum(0))), draws, f"bootstrap over {len(statistics):,} images, 1 seed")


def paired_bootstrap_corpus(
    a: Int[np.ndarray, "seed_a image statistic"], b: Int[np.ndarray, "seed_b image statistic"], score: Score,
    samples: int = 2000, seed: int = 0, same_runs: bool = False,
) -> Interval:  # fmt: skip
    """Percentile interval of score(a) - score(b), each the mean over its seeds, for BLEU and METEOR.

    Images are drawn, the same for both, then the seeds of each, as in `significance.paired_bootstrap`; `score` is as
    in `bootstrap_corpus`. With `same_runs`, a and b are of the same runs, seed by seed, and so are the seeds drawn.
    Raises CapbenchError when there is no image or no seed.
    """
    random = np.random.default_rng(seed)
    draws = _resampled([a, b], score, samples, random)
    test = f"paired bootstrap over {a.shape[1]:,} images and {len(a)} against {len(b)} seeds"
    mean = float(score(a.sum(1)).mean() - score(b.sum(1)).mean())
    return difference_percentiles(mean, seeds_drawn(draws, len(a), random, same_runs), test)


def _check_references(references: Sequence[Sequence[str]]) -> None:
    if not references:
        raise CapbenchError("there is nothing to score: no image was given")
    texts = [i for i, own in enumerate(references) if isinstance(own, str)]
    if texts:
        raise CapbenchError(f"the references of image {texts[0]} are one text: give a list of captions for each image")
    bare = [i for i, own in enumerate(references) if not own]
    if bare:
        raise CapbenchError(f"images without a reference cannot be scored, leave out {len(bare):,}: {listed(bare)}")


def _resampled(runs: list[np.ndarray], score: Score, samples: int, random: np.random.Generator) -> NDArray[Any]:
    """Values [seed, sample] of `runs` [seed, image, statistic] over images drawn anew, the same draw for every seed."""
    if not all(run.size for run in runs):
        raise CapbenchError("there is nothing to draw from: no image, or no seed")
    statistics = np.concatenate(runs)
    seeds, images, kinds = statistics.shape
    flat = statistics.transpose(1, 0, 2).reshape(images, seeds * kinds).astype(np.float64)
    drawn = resamples(_how_often, images, samples, random)
    return np.concatenate([score((weights @ flat).reshape(-1, seeds, kinds)) for weights in drawn]).T


def _how_often(images: int, rows: int, random: np.random.Generator) -> Float[np.ndarray, "sample image"]:
    return random.multinomial(images, np.full(images, 1 / images), rows).astype(np.float64)


def _sentence(words: str) -> str:
    """Words as a sentence of a text file; what is no character goes, as it does in the tokeniser.

    >>> _sentence("a dog runs")
    'A dog runs .'
    """
    text = " ".join(one_line(words).replace("\ufffd", " ").split())
    return f"{text[:1].upper()}{text[1:]} ."
