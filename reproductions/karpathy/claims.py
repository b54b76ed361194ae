"""The claims of Karpathy & Fei-Fei, tested on our records."""

from __future__ import annotations

import numpy as np

from capbench.evidence.results import Results
from capbench.evidence.verdicts import Claim, Outcome, advantage, beats, decided, points_at_what_is_named
from capbench.metrics.significance import seed_interval

DIRECTIONS = ("image_to_caption_r1", "caption_to_image_r1")


def regions_beat_full_frames(results: Results) -> Outcome:
    """Section 4.3, table 3: what is written about regions. On the scenes, where the true boxes are known."""
    on_scenes = results.select(dataset="scenes")
    sides = [on_scenes.select(preset=name).latest for name in ("rnn-regions-ours", "rnn-ours")]
    if not all(side.values("region_bleu1") for side in sides):
        return Outcome("pending", "needs rnn-regions-ours and rnn-ours on scenes")
    interval = advantage(sides[0], sides[1], "region_bleu1")
    means = {n: [np.mean(list(side.values(f"region_bleu{n}").values())) for side in sides] for n in (1, 2)}
    shown = [f"BLEU-{n} {ours:.1f} against {theirs:.1f}" for n, (ours, theirs) in means.items()]
    return decided(interval, f"on scenes, of true boxes: {', '.join(shown)}", "region_bleu1")


def pointing_grows(results: Results) -> Outcome:
    """The snapshot points better, on validation scenes, than the model after one epoch."""
    records = results.select(dataset="scenes", preset="brnn-ours").latest.records
    curves = [[epoch.validation["pointing"] for epoch in record.curve] for record in records]
    if len(curves) < 2 or min(map(len, curves)) < 2:
        return Outcome("pending", "needs brnn-ours on scenes, of two seeds and two epochs or more")
    gains = [curve[record.best_epoch] - curve[0] for curve, record in zip(curves, records, strict=True)]
    shown = ", ".join(f"{np.mean(epoch):.1f}" for epoch in zip(*curves, strict=False))
    return decided(seed_interval(gains), f"on scenes, by epoch: {shown} %", "validation pointing")


CLAIMS = (
    *(
        Claim(
            f"best region, {direction}",
            f"The score of each word's best region gives a higher R@1 than the sum over regions, {direction}.",
            "section 3.1.3, table 1",
            beats("brnn-ours", "sum-form-ours", metric),
        )
        for direction, metric in zip(("image to caption", "caption to image"), DIRECTIONS, strict=True)
    ),
    *(
        Claim(
            f"context of words, {direction}",
            "The bidirectional recurrent network gives a higher R@1 than words on their own (the paper compares with "
            f"dependency trees), {direction}.",
            "section 4.1, table 1",
            beats("brnn-ours", "bag-ours", metric),
        )
        for direction, metric in zip(("image to caption", "caption to image"), DIRECTIONS, strict=True)
    ),
    Claim(
        "regions",
        "A generator that learns from regions and inferred snippets describes regions better than one that learns from "
        "full frames.",
        "section 4.3, table 3",
        regions_beat_full_frames,
    ),
    Claim(
        "alignment",
        "Words point at what they name, more often than chance.",
        "section 4.1",
        points_at_what_is_named("brnn-ours"),
    ),
    Claim("learning to point", "Pointing, not trained for, grows with training.", "section 4.1", pointing_grows),
    Claim(
        "LSTM",
        "The LSTM writes better captions than the plain recurrent network.",
        "section 3.2, note on the code",
        beats("lstm-ours", "rnn-ours", "bleu4"),
    ),
)
