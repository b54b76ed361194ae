"""What is known of each metric: its words, its digits, which way better lies, its tolerance, and how to resample it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from capbench.base.errors import CapbenchError
from capbench.base.grouping import grouped
from capbench.metrics.alignment import BETAS
from capbench.metrics.captioning import bleu
from capbench.metrics.jars import meteor
from capbench.metrics.rsum import rsum

# The first author's own re-run of VSE++ (Table 3, row 3.15) differs from the paper by up to 2.4 points.
RECALL_TOLERANCE = 2.4
RANK_TOLERANCE = 1.0
# Ours: no re-run of a perplexity is known. Three seeds of a recipe lie 0.8 % apart on Flickr8K, up to 16 % on scenes.
RELATIVE_TOLERANCE = 0.03

BEAMS = (*range(1, 10), 20)  # widths that a test set is searched with
COCO, NO_PENALTY = "coco-caption", "without brevity penalty"  # rules of scoring captions
AS_WRITTEN = "as written"  # without a tokeniser; see `capbench.metrics.captioning`
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image to text", "text to image"
POSITIVES = {  # protocols with all positives, and their measures; see `capbench.metrics.positives`
    "eccv": ("ECCV", ("r1", "r_precision", "map_at_r")),
    "cxc": ("CxC", ("r1", "r5", "r10", "r_precision", "map_at_r")),
}
_RULES = ("", "_no_bp", "_as_written", "_as_written_no_bp")  # how the keys of metrics end that differ in their rule
_MEASURES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "r_precision": "R-Precision", "map_at_r": "mAP@R"}
_IMAGE_OF_QUERY = {  # the array that holds each query's image, by the array of the queries
    "caption_to_image": "image_of_caption",
    "pointing": "image_of_phrase",
    "pointing_chance": "image_of_phrase",
    **{
        f"{key}_caption_to_image_{m}": f"{key}_image_of_caption"
        for key, (_, all_of) in POSITIVES.items()
        for m in all_of
    },
}


@dataclass(frozen=True)
class Metric:
    """One metric of a record."""

    key: str  # in a record's `metrics`
    heading: str  # of a table's column
    name: str  # on an axis
    unit: str = ""
    digits: int = 1
    lower_is_better: bool = False
    tolerance: float = RECALL_TOLERANCE  # how much worse a number may be and still be close; see `allowed`
    relative: bool = False  # whether the tolerance is a share of the number compared with
    # a mean over queries; made of counts summed over images; a sum of means, whose images are drawn for all of them
    resampled: Literal["queries", "corpus", "jointly", "no"] = "no"
    array: str = ""  # the record's array that it is made of: [query], or [image, statistic]
    compute: Callable[[Any], Any] = np.asarray  # that array -> a value a query, or summed counts -> the metric
    shown: bool = True  # in tables of ours; one that is not needs a paper that prints it
    family: str = ""  # heading of the column that it shares with others; "{}" stands for their members
    member: str = ""  # "1", "5" and "10" of the family "image to text R@{}"
    rule: str = ""  # how captions are scored, in a few words; empty where there is but one way

    @property
    def image_of_query(self) -> str:
        """The array that holds each query's image, empty where a query is an image."""
        return _IMAGE_OF_QUERY.get(self.array, "")

    @property
    def noted_as(self) -> tuple[str, ...]:
        """How a record's note about this metric may begin, in lower case ("METEOR: no Java on this machine")."""
        return (self.key.lower(), self.key.partition("_")[0].lower(), self.key.rstrip("0123456789").lower())

    def allowed(self, reference: float) -> float:
        """How much worse than `reference` a number may be and still be close.

        >>> metric("bleu4").allowed(20.0), round(metric("perplexity").allowed(20.0), 2)
        (2.4, 0.6)
        """
        return self.tolerance * abs(reference) if self.relative else self.tolerance

    def per_query(self, arrays: Mapping[str, np.ndarray]) -> Float[np.ndarray, " query"]:
        """One value a query, whose mean is the metric: 0 or 100 for a recall, a rank from 1, an image's own ROUGE-L.

        Raises CapbenchError for a metric that is no mean over queries (a median, rsum), or without its array.
        """
        if self.resampled != "queries":
            raise CapbenchError(f"{self.key} is not a mean over queries; recalls and mean ranks are")
        if self.array not in arrays:
            raise CapbenchError(f"the record has no array {self.array!r}; run it again")
        return np.asarray(self.compute(arrays[self.array]), np.float64)


def metric(key: str) -> Metric:
    """A known metric, or one that is shown under its own key.

    >>> metric("rsum").heading, metric("glow").heading
    ('rsum', 'glow')
    """
    return METRICS.get(key) or Metric(key, key, key.replace("_", " "), digits=2)


def rule(key: str, tokenizer: str = "") -> str:
    """How captions are scored, in a few words; a tokeniser other than coco-caption's is named.

    >>> rule("bleu4"), rule("bleu4", "unicode"), rule("rsum", "unicode")
    ('coco-caption', 'coco-caption, tokeniser unicode', '')
    """
    words = metric(key).rule
    return f"{words}, tokeniser {tokenizer}" if tokenizer and words.startswith(COCO) else words


def otherwise_scored(key: str) -> list[Metric]:
    """The metrics that score the same captions in the same way but by another rule.

    >>> [entry.key for entry in otherwise_scored("meteor")], [entry.key for entry in otherwise_scored("rsum")]
    (['meteor_as_written'], [])
    """
    forms = [f"{key.removesuffix('_no_bp').removesuffix('_as_written')}{end}" for end in _RULES]
    return [METRICS[form] for form in forms if form != key and form in METRICS and METRICS[form].rule]


def columns(keys: Iterable[str], lesser: bool = False) -> list[Metric]:
    """The metrics of a table in their order, unknown ones last; `lesser` keeps those that are not `shown`."""
    ordered = sorted(set(keys), key=lambda key: (_ORDER.get(key, len(_ORDER)), key))
    return [entry for entry in map(metric, ordered) if lesser or entry.shown]


def families(metrics: Iterable[Metric]) -> list[tuple[str, list[Metric]]]:
    """The columns of a compact table: each heading with the metrics that share its cells.

    >>> [heading for heading, _ in families(columns(["image_to_caption_r1", "image_to_caption_r10", "rsum"]))]
    ['image to text R@1/10', 'rsum']
    """
    shared = grouped(metrics, lambda entry: entry.family or entry.heading)
    return [(_heading(members), members) for members in shared.values()]


def _heading(members: list[Metric]) -> str:
    """Of the column that metrics of one family share, or that a metric has to itself."""
    family = members[0].family
    return family.format("/".join(member.member for member in members)) if family else members[0].heading


def _retrieval(direction: str, heading: str, name: str, family: str) -> Iterator[Metric]:
    """Recalls and ranks of one direction; the record's array holds 0-based ranks."""
    queries: dict[str, Any] = {"resampled": "queries", "array": direction}
    rank: dict[str, Any] = {"lower_is_better": True, "tolerance": RANK_TOLERANCE}
    for k in (1, 5, 10):
        of = {"compute": partial(_hit, k=k), "family": f"{family} R@{{}}", "member": f"{k}", **queries}
        yield Metric(f"{direction}_r{k}", f"{heading} R@{k}", f"{name} R@{k}", "%", **of)
    of = {"family": "median rank {}", "member": heading, **rank}
    yield Metric(f"{direction}_median_rank", f"{heading} med r", f"{name} median rank", **of)
    mean = {"compute": _from_one, "shown": False, **rank, **queries}
    yield Metric(f"{direction}_mean_rank", f"{heading} mean r", f"{name} mean rank", **mean)


def _bleu(
    key: str, heading: str, name: str, array: str, rule: str, penalty: bool = True, shown: str = "1234"
) -> Iterator[Metric]:
    """BLEU-1 to BLEU-4 of one array of counts; "{}" stands for the order."""
    for n in (1, 2, 3, 4):
        score = partial(_bleu_of_order, order=n, penalty=penalty)
        counts: dict[str, Any] = {"resampled": "corpus", "array": array, "compute": score, "shown": str(n) in shown}
        family: dict[str, Any] = {"family": name, "member": str(n), "rule": rule}
        yield Metric(key.format(n), heading.format(n), name.format(n), **counts, **family)


def _positives(protocol: str, title: str, measures: Sequence[str]) -> Iterator[Metric]:
    """Recalls and precisions of a protocol with all positives."""
    for way, heading, asks in (("image_to_caption", "i→c", "image to"), ("caption_to_image", "c→i", "caption to")):
        for measure in measures:
            key, said = f"{protocol}_{way}_{measure}", _MEASURES[measure]
            names = (f"{title} {heading} {said}", f"{title}, {asks} {way.rpartition('_')[2]} {said}", "%")
            yield Metric(key, *names, resampled="queries", array=key)


def _hit(ranks: np.ndarray, k: int) -> np.ndarray:
    return 100.0 * (np.asarray(ranks) < k)


def _from_one(ranks: np.ndarray) -> np.ndarray:
    return np.asarray(ranks) + 1.0


def _bleu_of_order(counts: np.ndarray, order: int, penalty: bool) -> np.ndarray:
    return bleu(counts, brevity_penalty=penalty)[..., order - 1]


def _known() -> Iterator[Metric]:
    """Every metric, in the order of a table's columns."""
    yield from _retrieval("image_to_caption", "i→c", "image to caption", IMAGE_TO_TEXT)
    yield from _retrieval("caption_to_image", "c→i", "caption to image", TEXT_TO_IMAGE)
    for protocol, (title, measures) in POSITIVES.items():
        yield from _positives(protocol, title, measures)
    # Twice the tolerance of one recall: six times would take its six recalls to err together, all the same way.
    six: dict[str, Any] = {"tolerance": 2 * RECALL_TOLERANCE, "resampled": "jointly", "compute": rsum}
    yield Metric("rsum", "rsum", "rsum, the sum of the six recalls", "points", **six)
    yield from _bleu("bleu{}", "BLEU-{}", "BLEU-{}", "bleu_statistics", COCO)
    without = ("bleu{}_no_bp", "B-{} no bp", "BLEU-{} without brevity penalty")
    yield from _bleu(*without, "bleu_statistics", f"{COCO}, {NO_PENALTY}", penalty=False)
    counts: dict[str, Any] = {"resampled": "corpus", "compute": meteor}
    yield Metric("meteor", "METEOR", "METEOR", array="meteor_statistics", rule=COCO, **counts)
    for key, heading in (("rouge_l", "ROUGE-L"), ("cider", "CIDEr-D"), ("spice", "SPICE")):
        yield Metric(key, heading, heading, resampled="queries", array=key, rule=COCO)
    written = ("bleu{}_as_written", "B-{} as written", "BLEU-{} as written")
    yield from _bleu(*written, "bleu_as_written_statistics", AS_WRITTEN, shown="")
    without = (f"{written[0]}_no_bp", f"{written[1]}, no bp", f"{written[2]}, {NO_PENALTY}")
    yield from _bleu(*without, "bleu_as_written_statistics", f"{AS_WRITTEN}, {NO_PENALTY}", penalty=False)
    words = ("meteor_as_written", "METEOR as written", "METEOR as written")
    yield Metric(*words, array="meteor_as_written_statistics", rule=AS_WRITTEN, **counts)
    share: dict[str, Any] = {"tolerance": RELATIVE_TOLERANCE, "relative": True}
    yield Metric("perplexity", "perplexity", "perplexity of a word", digits=2, lower_is_better=True, **share)
    yield Metric("novelty", "new", "captions that are not in the training set", "%")
    n_best = "the n best captions that are not in the training set"
    yield Metric("novelty_n_best", "new n-best", n_best, "%", shown=False)
    yield Metric("self_bleu", "self-BLEU", "self-BLEU of the n best")
    of_phrase: dict[str, Any] = {"unit": "%", "resampled": "queries"}
    yield Metric("pointing", "pointing", "pointing at the thing named", array="pointing", **of_phrase)
    yield Metric("pointing_chance", "chance", "pointing by chance", array="pointing_chance", **of_phrase)
    yield Metric("pointing_whole", "centre", "the image's centre on the thing named", "%")
    yield Metric("overlap", "overlap", "best region that overlaps the thing by half", "%")
    yield Metric(
        "overlap_chance", "overlap by chance", "random regions that overlap the thing by half", "%", shown=False
    )
    for n in (1, 2, 3, 4):  # as the article computes it, from no counts that a record keeps
        words = (f"article_bleu{n}", f"art. B-{n}", f"BLEU-{n} as the article")
        yield Metric(*words, family="BLEU-{} as the article", member=str(n), rule="as the article")
    for beta in BETAS:
        words = (f"snippet_f1_beta{beta:g}", f"F1 β {beta:g}", f"F1 of snippets, affinity {beta:g}")
        yield Metric(*words, unit="%", family="F1 β {}", member=f"{beta:g}")
    yield from _bleu("region_bleu{}", "region B-{}", "BLEU-{} on regions", "region_bleu_statistics", COCO)
    yield Metric("article_accuracy", "art. acc.", "argmax accuracy as the article", "%")
    entropy = {"digits": 2, "lower_is_better": True, **share}
    yield Metric("article_cross_entropy", "art. CE", "cross entropy as the article", **entropy)
    for width in BEAMS:
        words = (f"bleu{{}}_beam{width}", f"B-{{}} beam {width}", f"BLEU-{{}}, beam {width}")
        of_beam = _bleu(*words, f"bleu_beam{width}", COCO, shown="")
        yield from (replace(entry, family=f"BLEU-{entry.member}, beam {{}}", member=str(width)) for entry in of_beam)
        words = (f"validation_bleu4_beam{width}", f"val. B-4 beam {width}", f"BLEU-4 on validation, beam {width}")
        yield Metric(*words, shown=False, family="BLEU-4 on validation, beam {}", member=str(width), rule=COCO)
    yield Metric("beam", "beam", "width of the beam", digits=0, shown=False)
    yield Metric("log_likelihood", "log p", "log-likelihood of a word", digits=2, shown=False, **share)
    yield Metric("word_accuracy", "word acc.", "next words guessed right", "%", shown=False)
    yield Metric("distinct2", "distinct-2", "distinct bigrams", "%", shown=False)
    yield Metric("vocabulary_used", "words used", "different words used", digits=0, shown=False, **share)


METRICS = {entry.key: entry for entry in _known()}
_ORDER = {key: place for place, key in enumerate(METRICS)}
