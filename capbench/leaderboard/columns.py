"""How metrics are shown: name, unit, digits, order, and which way better lies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from capbench.metrics.alignment import BETAS


@dataclass(frozen=True)
class Metric:
    """`head` is for columns, `name` for axes; one that is not `shown` needs a paper that prints it."""

    key: str
    head: str
    name: str
    unit: str = ""
    digits: int = 1
    lower_is_better: bool = False
    shown: bool = True


def _retrieval(key: str, head: str, name: str) -> list[Metric]:
    recalls = [Metric(f"{key}_r{k}", f"{head} R@{k}", f"{name} R@{k}", "%") for k in (1, 5, 10)]
    median = Metric(f"{key}_median_rank", f"{head} med r", f"{name} median rank", lower_is_better=True)
    mean = Metric(f"{key}_mean_rank", f"{head} mean r", f"{name} mean rank", lower_is_better=True, shown=False)
    return [*recalls, median, mean]


_KNOWN = (
    *_retrieval("image_to_caption", "i→c", "image to caption"),
    *_retrieval("caption_to_image", "c→i", "caption to image"),
    Metric("rsum", "rsum", "rsum, the sum of the six recalls", "points"),
    *(Metric(f"bleu{n}", f"BLEU-{n}", f"BLEU-{n}") for n in (1, 2, 3, 4)),
    *(
        Metric(f"bleu{n}_no_bp", f"B-{n} no bp", f"BLEU-{n} without brevity penalty", shown=n == 4)
        for n in (1, 2, 3, 4)
    ),
    Metric("meteor", "METEOR", "METEOR"),
    Metric("rouge_l", "ROUGE-L", "ROUGE-L"),
    Metric("cider", "CIDEr-D", "CIDEr-D"),
    Metric("spice", "SPICE", "SPICE"),
    Metric("perplexity", "perplexity", "perplexity of a word", digits=2, lower_is_better=True),
    Metric("novelty", "new", "captions that are not in the training set", "%"),
    Metric("novelty_n_best", "new n-best", "the n best captions that are not in the training set", "%", shown=False),
    Metric("self_bleu", "self-BLEU", "self-BLEU of the n best"),
    Metric("pointing", "pointing", "attention that lands on the thing named", "%"),
    Metric("pointing_chance", "chance", "pointing by chance", "%"),
    Metric("pointing_whole", "centre", "pointing of the image's centre", "%"),
    Metric("overlap", "overlap", "best region that overlaps the thing by half", "%"),
    Metric("overlap_chance", "overlap by chance", "regions that overlap the thing by half", "%", shown=False),
    *(Metric(f"article_bleu{n}", f"art. B-{n}", f"BLEU-{n} as the article") for n in (1, 2, 3, 4)),
    *(
        Metric(f"snippet_f1_beta{beta:g}", f"F1 β {beta:g}", f"F1 of snippets, affinity {beta:g}", "%")
        for beta in BETAS
    ),
    *(Metric(f"region_bleu{n}", f"region B-{n}", f"BLEU-{n} on regions") for n in (1, 2, 3, 4)),
    Metric("article_accuracy", "art. acc.", "argmax accuracy as the article", "%"),
    Metric("article_cross_entropy", "art. CE", "cross entropy as the article", digits=2, lower_is_better=True),
    *(Metric(f"bleu4_beam{n}", f"B-4 beam {n}", f"BLEU-4, beam {n}", shown=False) for n in (*range(1, 10), 20)),
    Metric("log_likelihood", "log p", "log-likelihood of a word", digits=2, shown=False),
    Metric("word_accuracy", "word acc.", "next words guessed right", "%", shown=False),
    Metric("distinct2", "distinct-2", "distinct bigrams", "%", shown=False),
    Metric("vocabulary_used", "words used", "different words used", digits=0, shown=False),
)
_ORDER = {metric.key: place for place, metric in enumerate(_KNOWN)}


def metric(key: str) -> Metric:
    """A known metric, or one that is shown under its own key."""
    return _KNOWN[_ORDER[key]] if key in _ORDER else Metric(key, key, key.replace("_", " "), digits=2)


def columns(keys: Iterable[str], lesser: bool = False) -> list[Metric]:
    """The metrics of a table in their order, unknown ones last; `lesser` keeps those that are not `shown`."""
    found = [metric(key) for key in sorted(set(keys), key=lambda key: (_ORDER.get(key, len(_ORDER)), key))]
    return [entry for entry in found if lesser or entry.shown]


def explained(keys: Iterable[str]) -> list[str]:
    """Sentences that say what the metrics are, for those that occur."""
    found = set(keys)
    sentences = []
    if any(key.startswith(("image_to_caption", "caption_to_image")) for key in found):
        sentences.append(
            "**i→c** asks for the captions of an image, **c→i** for the image of a caption. **R@K** is the "
            "percentage of queries with a right answer among the first K, higher is better; **med r** is the "
            "median rank of the first right answer, 1 is best; **rsum** is the sum of the six recalls. Ties count "
            "against the model."
        )
    if any(key.startswith("bleu") for key in found):
        sentences.append(
            "**BLEU** is that of coco-caption, with brevity penalty, after the PTB tokeniser unless a "
            "note says otherwise; **no bp** is without the "
            "penalty, as Show, Attend and Tell reports it."
        )
    if "cider" in found:
        sentences.append("**CIDEr-D** is the variant that coco-caption computes, × 100.")
    if "novelty" in found:
        sentences.append(
            "**new** is the percentage of captions that are no training caption; **self-BLEU** is the BLEU-4 of each "
            "of the best captions of an image (as many as the beam, 15 at most) against the others, low is varied."
        )
    if "pointing" in found:
        sentences.append(
            "**pointing** is how often the heaviest location (or the centre of the best region) lies on what a phrase "
            "of the reference names, **chance** how often a random one would, **centre** how often the centre of the "
            "image does; **overlap** is how often the best region shares half of its union with it."
        )
    if any(key.startswith("snippet_f1") for key in found):
        sentences.append(
            "**F1 β** is that of the words given to a region on a thing, against the words of the phrases that name "
            "the thing, at an affinity β between neighbouring words. Every word must take some region, verbs too, so "
            "that 100 cannot be reached."
        )
    if any(key.startswith("region_bleu") for key in found):
        sentences.append(
            "**region** columns score what is written about the true box of each thing, against the phrases that "
            "name it."
        )
    if any(key.startswith("article_") for key in found):
        sentences.append(
            "**art.** columns are computed as the article's code does, on teacher-forced words and one reference; they "
            "say nothing about captions that are written freely."
        )
    return sentences
