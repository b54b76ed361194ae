"""The claims of Show and Tell, tested on our records."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from capbench.evidence.results import Results
from capbench.evidence.verdicts import Claim, Outcome, advantage, beats, decided, where
from capbench.metrics.registry import BEAMS


def beam_beats_greedy(results: Results) -> Outcome:
    """Section 3.1: a beam of 20 gains 2 BLEU points over a beam of 1, on average."""
    runs = _runs_of_ours(results)
    if runs is None:
        return Outcome("pending", "needs a run of nic-ours")
    place, bleu = where(runs), _by_width(runs)
    if 20 not in bleu:
        return Outcome("pending", f"needs a run of nic-ours with a beam of 20; on {place} it is narrower")
    interval = advantage(runs, runs, "bleu4_beam20", "bleu4_beam1")
    return decided(interval, f"on {place}: BLEU-4 {bleu[20]:.1f} with a beam of 20, {bleu[1]:.1f} with 1", "bleu4")


def curve_over_beams(results: Results) -> Outcome:
    """BLEU-4 by the width of the beam: 9 against greedy search, and the curve."""
    runs = _runs_of_ours(results)
    if runs is None:
        return Outcome("pending", "needs a run of nic-ours")
    curve = _by_width(runs)
    best = max(curve, key=lambda n: curve[n])
    shown = ", ".join(f"{n}: {value:.1f}" for n, value in curve.items())
    interval = advantage(runs, runs, "bleu4_beam9", "bleu4_beam1")
    outcome = decided(interval, f"on {where(runs)}: best at {best}", "bleu4")
    return replace(outcome, detail=f"{outcome.detail}; by width: {shown}")


def _runs_of_ours(results: Results) -> Results | None:
    """The latest records of nic-ours on the most telling data set."""
    runs = results.first_with("nic-ours")
    return None if runs is None else runs.select(preset="nic-ours").latest


def _by_width(runs: Results) -> dict[int, float]:
    """Mean BLEU-4 by the width of the beam, for the widths that were used."""
    values = {width: list(runs.values(f"bleu4_beam{width}").values()) for width in BEAMS}
    return {width: float(np.mean(seeds)) for width, seeds in values.items() if seeds}


CLAIMS = (
    Claim(
        "beam", "A beam of 20 is better than greedy search (by 2 BLEU in the paper).", "section 3.1", beam_beats_greedy
    ),
    Claim("width of the beam", "A beam of 9 is better than greedy search.", "section 3.1", curve_over_beams),
    Claim(
        "ensemble",
        "An ensemble gains BLEU over one of its models.",
        "section 4.3.1",
        beats("nic-ensemble-ours", "nic-ours", "bleu4"),
    ),
)
