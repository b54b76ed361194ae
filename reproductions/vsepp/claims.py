"""The claims of VSE++, tested on our records."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from capbench.evidence.results import Results
from capbench.evidence.verdicts import Claim, Outcome, beats, decided, difference, on_most_telling
from capbench.metrics.significance import bootstrap

from .recipe import NEGATIVES

DIRECTIONS = ("image_to_caption_r1", "caption_to_image_r1")


def larger_sets_help(results: Results) -> Outcome:
    """Figure 2b: R@1 of image to caption by the size of the set of negatives.

    The test compares the ends: the hardest of the whole batch against the hardest of one. The outcome says where R@1
    does not rise from each size to the next.
    """
    names = [*(f"vsepp-negatives-{size}-ours" for size in NEGATIVES), "vsepp-ours"]
    sizes = dict(zip(names, [*map(str, NEGATIVES), "the batch"], strict=True))

    def test(runs: Results) -> Outcome:
        ends = difference(runs, names[-1], names[0], DIRECTIONS[0])
        seeds = {sizes[name]: list(runs.select(preset=name).values(DIRECTIONS[0]).values()) for name in names}
        means = {size: float(np.mean(values)) for size, values in seeds.items() if values}
        rises = all(lower <= higher for lower, higher in pairwise(means.values()))
        by_size = ", ".join(f"{size}: {mean:.1f}" for size, mean in means.items())
        detail = f"{ends.detail}, the batch against one; R@1 by size of the set: {by_size}"
        qualifier = "" if rises else f"at its ends, not monotone: highest at {max(means, key=means.__getitem__)}"
        return replace(ends, detail=detail, qualifier=qualifier)

    return on_most_telling(names[-1], names[0], test)(results)


def stronger_encoder_gains_more(results: Results) -> Outcome:
    """Table 1 and section 3.4: from a weaker to a stronger encoder, the max of hinges gains more R@1 than the sum."""
    weak, strong = "squeezenet1_0", "timm/tf_efficientnet_lite2"
    gains = {}
    for preset in ("vsepp-ours", "vse0-ours"):
        sides = [results.select(preset=preset, dataset="flickr8k", encoder=name) for name in (strong, weak)]
        if not all(side.records for side in sides):
            return Outcome("pending", f"needs {preset} on flickr8k with {weak} and {strong}")
        hits = [side.queries(DIRECTIONS[0])[0].mean(0) for side in sides]
        gains[preset] = hits[0] - hits[1]
    interval = bootstrap(gains["vsepp-ours"] - gains["vse0-ours"])
    interval = replace(interval, test=f"bootstrap over {len(gains['vse0-ours']):,} queries, seeds averaged")
    means = ", ".join(f"{name} gains {values.mean():.1f}" for name, values in gains.items())
    return decided(interval, f"on flickr8k, from {weak} to {strong}: {means}", DIRECTIONS[0])


def overtakes_after_some_epochs(runs: Results) -> Outcome:
    """Figure 2a: the published max of hinges starts below the sum and ends above it, in validation rsum."""
    curves = []
    for preset in ("vsepp", "vse0"):
        records = runs.select(preset=preset).latest.records
        epochs = min(len(record.curve) for record in records)
        rsums = [[epoch.validation["rsum"] for epoch in record.curve[:epochs]] for record in records]
        curves.append(np.mean(rsums, axis=0))
    epochs = min(map(len, curves))
    ahead = curves[0][:epochs] > curves[1][:epochs]
    behind = np.flatnonzero(~ahead)
    crossing = int(behind[-1]) + 2 if len(behind) else 1
    after = f"stays above from epoch {crossing} on" if ahead[-1] else "is not above at the end"
    statement = f"vsepp starts {'above' if ahead[0] else 'below'} vse0 and {after}"
    detail = f"mean validation rsum over seeds, {epochs} epochs"
    return Outcome("holds" if not ahead[0] and ahead[-1] else "fails", statement, detail=detail)


CLAIMS = (
    *(
        Claim(
            f"hardest negatives, {direction}, {recipe}",
            f"The hardest negative gives a higher R@1 than the sum over all negatives, {direction}.",
            "sections 3.3 and 3.4",
            beats(better, worse, metric),
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
        on_most_telling("vsepp", "vse0", overtakes_after_some_epochs),
    ),
)
