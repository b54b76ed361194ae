"""What Show and Tell claims, made executable on our records."""

from __future__ import annotations

import numpy as np

from capbench.evidence.results import Results
from capbench.evidence.verdicts import Claim, Outcome, advantage, decided, difference

WIDTHS = (*range(1, 10), 20)  # of the beam; a test set is searched with 1 to 9 and with the recipe's own


def beam_beats_greedy(results: Results) -> Outcome:
    """Section 3.1: a beam of 20 gains 2 BLEU points over one of 1, on average."""
    having = results.first_with("nic-ours")
    if having is None:
        return Outcome("pending", "needs a run of nic-ours")
    part = having.select(preset="nic-ours").latest
    where, bleu = part.records[0].dataset, _by_width(part)
    if 20 not in bleu:
        return Outcome("pending", f"needs a run of nic-ours with a beam of 20; that on {where} has a narrower one")
    interval = advantage(part, part, "bleu4_beam20", "bleu4_beam1")
    return decided(interval, f"on {where}: BLEU-4 {bleu[20]:.1f} with a beam of 20, {bleu[1]:.1f} with 1", "bleu4")


def curve_over_beams(results: Results) -> Outcome:
    """BLEU-4 over the width of the beam: the widest of 1 to 9 against greedy, and the curve."""
    having = results.first_with("nic-ours")
    if having is None:
        return Outcome("pending", "needs a run of nic-ours")
    part = having.select(preset="nic-ours").latest
    curve = _by_width(part)
    best = max(curve, key=lambda n: curve[n])
    shown = ", ".join(f"{n}: {value:.1f}" for n, value in curve.items())
    interval = advantage(part, part, "bleu4_beam9", "bleu4_beam1")
    found = decided(interval, f"on {part.records[0].dataset}: best at {best}", "bleu4")
    return Outcome(found.status, found.statement, found.interval, f"{found.detail}; by width: {shown}")


def _by_width(part: Results) -> dict[int, float]:
    """The mean BLEU-4 by the width of the beam, for those that were searched with."""
    values = {width: list(part.values(f"bleu4_beam{width}").values()) for width in WIDTHS}
    return {width: float(np.mean(seeds)) for width, seeds in values.items() if seeds}


def ensemble_gains(results: Results) -> Outcome:
    """Section 4.3.1: an ensemble gains a few BLEU points over one model."""
    part = results.first_with("nic-ensemble-ours", "nic-ours")
    if part is None:
        return Outcome("pending", "needs nic-ours and nic-ensemble-ours on one data set")
    found = difference(part, "nic-ensemble-ours", "nic-ours", "bleu4")
    return Outcome(found.status, f"on {part.records[0].dataset}: {found.statement}", found.interval, found.detail)


CLAIMS = (
    Claim(
        "beam", "A beam of 20 is better than greedy search (by 2 BLEU in the paper).", "section 3.1", beam_beats_greedy
    ),
    Claim("width of the beam", "A beam of 9 is better than greedy search.", "section 3.1", curve_over_beams),
    Claim("ensemble", "An ensemble gains BLEU over one of its models.", "section 4.3.1", ensemble_gains),
)
