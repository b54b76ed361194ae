"""How to read a page; it stands once, in leaderboards/README.md, and every page links there."""

from __future__ import annotations

from collections.abc import Iterator

from capbench.evidence.verdicts import RULES, TOLERANCES
from capbench.leaderboard.markdown import DASH, table

HEADING = "How to read a page"
LINK = "README.md#how-to-read-a-page"
_METRICS = (
    "**R@K** is the percentage of queries with a right answer among the first K; image to text (i→c) asks for the "
    "captions of an image, text to image (c→i) for the image of a caption. **Median rank** is that of the first right "
    "answer, 1 is best. **rsum** is the sum of the six recalls. Ties count against the model.",
    "**BLEU** is coco-caption's, after the PTB tokeniser unless a note says otherwise. **No bp** is without brevity "
    "penalty, as Show, Attend and Tell reports it. **As written** is without a tokeniser, against references that keep "
    "their capitals and full stops, as its released code scores. **CIDEr-D** is coco-caption's variant, × 100.",
    "**Beam.** Where a recipe says so, the width of the beam with the best BLEU-4 on validation writes the captions. A "
    "note beside the preset gives the width, and BLEU on test at the recipe's own.",
    "**New** is the percentage of captions that do not occur among the training captions. **Self-BLEU** is the BLEU-4 "
    "of each of an image's best captions (as many as the beam, 15 at most) against the others; low means varied.",
    "**Pointing** is how often the location with the most weight, or the centre of the best region, lies on what a "
    "phrase names; **chance** is how often a random location does, **centre** how often the image's centre does. "
    "**Overlap** is how often the best region shares half of its union with the thing named.",
    "**F1 β** scores the words given to a region, against the phrases that name its thing, at an affinity β between "
    "neighbouring words. Every word must take a region, verbs too, so 100 is out of reach.",
    "**BLEU on regions** scores what is written about the true box of each thing, against the phrases that name it.",
    "**As the article** marks what the article's own code computes, on teacher-forced words and one reference. It says "
    "nothing about captions that a model writes by itself.",
)


def blocks() -> Iterator[str]:
    """The legend as markdown."""
    yield f"## {HEADING}"
    yield (
        "A verdict compares our mean with a reported number of the same data set, split and protocol; the encoder may "
        "differ, and both are named. Of several numbers of the paper, a sign on the first screen is that of the run's "
        "own encoder, else the best. The first line that applies decides:"
    )
    rules = [[f"{rule.sign}", rule.status, rule.words] for rule in RULES]
    yield table(["sign", "verdict", "when"], rules, "lll")
    yield f"The tolerance is {TOLERANCES}. *Matched or better* counts *exceeds* and *reproduced*."
    yield (
        "**± is half of the 95 % interval**: Student's t over seeds; for one seed, a bootstrap over its queries, which "
        "says nothing about other seeds. A median rank or rsum of one seed has none, and without an interval no number "
        "*exceeds*."
    )
    yield (
        "**The paper's own numbers** are its targets, each counted once, by the best of our runs beside it. Numbers of "
        "**other systems** are baselines, counted apart, once for each run beside them: = says as good as that system, "
        "no more. The recipe column says whose recipe was run: a name that ends in `-ours` is ours. Numbers for "
        "context are only in a paper's reported.csv. *Not run* has no verdict: we have no run under that protocol."
    )
    yield (
        "**Only the published split is judged**, known by its fingerprint. Runs on other data under the same name "
        "are listed separately, as are the scenes, which capbench draws itself and no paper reports."
    )
    yield (
        "**A claim** holds where the whole 95 % interval of its difference lies above 0, fails where it lies below, "
        "and is open in between or without runs. A finding without an interval says what was tested. The "
        "test is on the largest data set with its runs, with the encoder of most seeds, or of several the default one."
    )
    yield (
        "**Signs.** † a reported number known from memory, not confirmed; ° from one source only. "
        f"{DASH} no such number: the paper does not print it, or a note gives our reason. A raised "
        "letter points to the notes below its table. *Caution* marks records of an older schema, of a tree with "
        "uncommitted changes or of a recipe that has changed since, and seeds that were computed differently. *This "
        "machine* marks your own runs, which count in no verdict of a committed page."
    )
    yield "**Metrics.**"
    yield "\n".join(f"- {words}" for words in _METRICS)
