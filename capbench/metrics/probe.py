"""A linear probe: how well the words of an image's captions can be told from a vector of its features.

Ridge regression from the standardised features to the presence of each word, a value of 0 or 1; the penalty is the
one with the best mean area under the ROC curve on the validation images, and the areas on the test images count.
It needs no captioner, so that it says what an encoder alone contributes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from capbench.base.errors import CapbenchError

PENALTIES = tuple(10.0 ** (half / 2) for half in range(-2, 9))  # the mean square of a standardised feature is 1
_ENGLISH = """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
    it its itself they them their theirs themselves what which who whom this that these those
    am is are was were be been being have has had having do does did doing can will just don should now
    a an the and but if or because as until while of at by for with about against between into through during before
    after above below to from up down in out on off over under again further then once here there when where why how
    all any both each few more most other some such no nor not only own same so than too very
    s t d ll m o re ve y ain aren couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn wasn weren
    won wouldn
"""
STOP_WORDS = frozenset(_ENGLISH.split())  # those of nltk's corpus `stopwords`, without contractions


class Seen(NamedTuple):
    """The images of a split: their features, and which words their captions have."""

    features: Float[np.ndarray, "image dim"]
    present: Bool[np.ndarray, "image word"]


@dataclass(frozen=True, eq=False)
class Probe:
    """What a probe tells of the test images."""

    penalty: float  # on the squared weights, beside the mean squared error
    areas: Float[np.ndarray, " word"]  # under the ROC curve; 0.5 is chance
    influence: Float[np.ndarray, " image"]  # of each test image on the mean area; see `influence`

    @property
    def area(self) -> float:
        """The mean of `areas`."""
        return float(self.areas.mean())


def content_words(images: Sequence[AbstractSet[str]]) -> list[str]:
    """The words of the images' captions but `STOP_WORDS`, by the number of images that have them, then alphabet.

    >>> content_words([{"a", "dog"}, {"a", "dog", "runs"}])
    ['dog', 'runs']
    """
    occurrences = Counter(word for words in images for word in words if word not in STOP_WORDS)
    return sorted(occurrences, key=lambda word: (-occurrences[word], word))


def presence(images: Sequence[AbstractSet[str]], words: Sequence[str]) -> Bool[np.ndarray, "image word"]:
    """Which of `words` the captions of each image have.

    >>> presence([{"dog", "runs"}, {"cat"}], ["dog", "cat"]).tolist()
    [[True, False], [False, True]]
    """
    return np.array([[word in own for word in words] for own in images]).reshape(len(images), len(words))


def probe(train: Seen, val: Seen, test: Seen) -> Probe:
    """Fit on the training images, choose the penalty on the validation images, and score the test images.

    Raises CapbenchError if a word is in all or in no image of the validation or the test split: it has no ROC curve.
    """
    for name, split in (("validation", val), ("test", test)):
        one_sided = int((split.present.all(0) | ~split.present.any(0)).sum())
        if one_sided or not split.present.size:
            raise CapbenchError(f"{one_sided} words are in all or in none of the {name} images; leave them out")
    mean, deviation = train.features.mean(0, dtype=np.float64), train.features.std(0, dtype=np.float64)
    deviation[deviation == 0] = 1.0
    x, x_val, x_test = ((split.features - mean) / deviation for split in (train, val, test))
    fitted = ridge(x, train.present, PENALTIES)
    scored = [(float(roc_areas(x_val @ w, val.present).mean()), p, w) for p, w in zip(PENALTIES, fitted, strict=True)]
    _, penalty, weights = max(scored, key=lambda entry: entry[0])
    scores = x_test @ weights
    return Probe(penalty, roc_areas(scores, test.present), influence(scores, test.present))


def ridge(
    x: Float[np.ndarray, "image dim"], y: Bool[np.ndarray, "image word"], penalties: Sequence[float]
) -> Iterator[Float[np.ndarray, "dim word"]]:
    """For each penalty, the W that minimises ||y - x W||^2 / images + penalty ||W||^2, for centred columns of x."""
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    target = vectors.T @ (x.T @ (y - y.mean(0))) / len(x)
    for penalty in penalties:
        yield vectors @ (target / (values.clip(0) + penalty)[:, None])


def roc_areas(
    scores: Float[np.ndarray, "image word"], present: Bool[np.ndarray, "image word"]
) -> Float[np.ndarray, " word"]:
    """The area under each word's ROC curve: how often an image with it scores above one without, a tie as half.

    >>> scores = np.array([[0.9], [0.5], [0.5], [0.1]])
    >>> roc_areas(scores, np.array([[True], [True], [False], [False]])).tolist()
    [0.875]
    """
    positives = present.sum(0)
    ranks = np.where(present, rankdata(scores, axis=0), 0).sum(0)
    return np.asarray((ranks - positives * (positives + 1) / 2) / (positives * (len(present) - positives)))


def influence(
    scores: Float[np.ndarray, "image word"], present: Bool[np.ndarray, "image word"]
) -> Float[np.ndarray, " image"]:
    """How the mean area hangs on each image: the derivative by the image's weight, times the number of images.

    An image with a word adds the share of images without it that score below, less the area, over the share of images
    with it; and likewise the other way round. Source: DeLong, DeLong, Clarke-Pearson, Biometrics 1988, for one curve.
    """
    areas, total = roc_areas(scores, present), np.zeros(len(scores))
    for of_word, here, area in zip(scores.T, present.T, areas, strict=True):
        ranks, above = rankdata(of_word), np.empty(len(of_word))
        for side in (here, ~here):
            above[side] = (ranks[side] - rankdata(of_word[side])) / (~side).sum()  # the other side's share below
        above[~here] = 1 - above[~here]
        total += (above - area) / np.where(here, here.mean(), (~here).mean())
    return np.asarray(total / len(areas))


def standard_error(influence: Float[np.ndarray, " image"]) -> float:
    """Of a mean area over draws of test images; of the difference of two, given the difference of their influences."""
    return float(influence.std(ddof=1)) / math.sqrt(len(influence))
