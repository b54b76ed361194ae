"""The claims of VSE++, tested on our records.

A claim is tested on photographs if there are records of any, else on the scenes. The statement says which.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np

from capbench.evidence.results import Results
from capbench.evidence.verdicts import Claim, Outcome, difference
from capbench.metrics.significance import Interval

SETS = (1, 4, 16, 64)
DIRECTIONS = ("image_to_caption_r1", "caption_to_image_r1")


def hardest_beats_sum(better: str, worse: str, metric: str) -> Callable[[Results], Outcome]:
    """`better` against `worse` in a recall, by paired bootstrap over queries and seeds."""
    return lambda results: _on_first_dataset(
        results, better, worse, lambda part: difference(part, better, worse, metric)
    )


def larger_sets_help(results: Results) -> Outcome:
    """Figure 2b: R@1 of image to caption by the size of the set of negatives.

    The test compares the hardest of the whole batch with the hardest of one. The detail says whether R@1 rises with
    each larger size.
    """
    names = [*(f"vsepp-negatives-{size}-ours" for size in SETS), "vsepp-ours"]
    sizes = dict(zip(names, [*map(str, SETS), "the batch"], strict=True))

    def test(part: Results) -> Outcome:
        ends = difference(part, names[-1], names[0], DIRECTIONS[0])
        seeds = {sizes[name]: list(part.select(preset=name).values(DIRECTIONS[0]).values()) for name in names}
        means = {size: float(np.mean(values)) for size, values in seeds.items() if values}
        shown = ", ".join(f"{size}: {mean:.1f}" for size, mean in means.items())
        rises = all(lower <= higher for lower, higher in pairwise(means.values()))
        course = (
            "it rises from each size to the next" if rises else f"it is highest at {max(means, key=means.__getitem__)}"
        )
        detail = f"{ends.detail}, the batch against one; R@1 by size of the set: {shown}; {course}"
        return Outcome(ends.status, ends.statement, ends.interval, detail)

    return _on_first_dataset(results, names[-1], names[0], test)


def stronger_encoder_gains_more(results: Results) -> Outcome:
    """Table 1 and section 3.4: from a weaker to a stronger encoder, the max of hinges gains more R@1 than the sum."""
    weak, strong = "squeezenet1_0", "mobilenet_v2"
    gains = {}
    for preset in ("vsepp-ours", "vse0-ours"):
        sides = [results.select(preset=preset, dataset="flickr8k", encoder=name) for name in (strong, weak)]
        if not all(side.records for side in sides):
            return Outcome("pending", f"needs {preset} on flickr8k with {weak} and {strong}")
        hits = [side.queries(DIRECTIONS[0])[0].mean(0) for side in sides]
        gains[preset] = hits[0] - hits[1]
    random = np.random.default_rng(0)
    queries = len(gains["vse0-ours"])
    extra = gains["vsepp-ours"] - gains["vse0-ours"]
    drawn = random.integers(0, queries, (2000, queries))
    low, high = np.quantile(extra[drawn].mean(1), (0.025, 0.975))
    interval = Interval(
        float(extra.mean()), float(low), float(high), f"bootstrap over {queries:,} queries, seeds averaged"
    )
    status: Literal["holds", "fails", "undecided"] = "holds" if low > 0 else "fails" if high < 0 else "undecided"
    shown = ", ".join(f"{name} gains {values.mean():.1f}" for name, values in gains.items())
    return Outcome(
        status, f"on flickr8k, from {weak} to {strong}: {shown}", interval, f"{DIRECTIONS[0]}, {interval.test}"
    )


def overtakes_after_some_epochs(results: Results) -> Outcome:
    """Figure 2a: the published max of hinges starts below the sum and ends above it, in validation rsum."""

    def test(part: Results) -> Outcome:
        curves = []
        for preset in ("vsepp", "vse0"):
            records = part.select(preset=preset).latest.records
            epochs = min(len(record.curve) for record in records)
            curves.append(
                np.mean([[e.validation["rsum"] for e in record.curve[:epochs]] for record in records], axis=0)
            )
        epochs = min(map(len, curves))
        ahead = curves[0][:epochs] > curves[1][:epochs]
        behind = np.flatnonzero(~ahead)
        crossing = int(behind[-1]) + 2 if len(behind) else 1
        holds = not ahead[0] and ahead[-1]
        after = f"stays above from epoch {crossing} on" if ahead[-1] else "is not above at the end"
        statement = f"vsepp starts {'above' if ahead[0] else 'below'} vse0 and {after}"
        return Outcome(
            "holds" if holds else "fails", statement, None, f"mean validation rsum over seeds, {epochs} epochs"
        )

    return _on_first_dataset(results, "vsepp", "vse0", test)


def _on_first_dataset(results: Results, better: str, worse: str, test: Callable[[Results], Outcome]) -> Outcome:
    for dataset, encoder in (
        ("coco", "resnet152"),
        ("flickr30k", "resnet152"),
        ("flickr8k", "mobilenet_v2"),
        ("scenes", "scenes"),
    ):
        part = results.select(dataset=dataset, encoder=encoder)
        if all(part.select(preset=name).records for name in (better, worse)):
            found = test(part)
            return Outcome(found.status, f"on {dataset}: {found.statement}", found.interval, found.detail)
    return Outcome("pending", f"needs {better} and {worse} on one data set")


CLAIMS = (
    *(
        Claim(
            f"hardest negatives, {direction}, {recipe}",
            f"The hardest negative gives a higher R@1 than the sum over all negatives, {direction}.",
            "sections 3.3 and 3.4",
            hardest_beats_sum(better, worse, metric),
        )
        for recipe, better, worse in (
            ("published recipe", "vsepp", "vse0"),
            ("recipe for small data", "vsepp-ours", "vse0-ours"),
        )
        for direction, metric in zip(("image to caption", "caption to image"), DIRECTIONS, strict=True)
    ),
    Claim(
        "set of negatives",
        "The hardest of a large set of negatives, a batch of 128, is better to learn from than the hardest of one.",
        "figure 2b",
        larger_sets_help,
    ),
    Claim(
        "stronger encoder",
        "A stronger image encoder gains more under the max of hinges than under the sum.",
        "section 3.4",
        stronger_encoder_gains_more,
    ),
    Claim(
        "overtaking",
        "The max of hinges is below the sum in the first epochs and overtakes it.",
        "figure 2a",
        overtakes_after_some_epochs,
    ),
)
