"""The claims of the article, tested on our records."""

from __future__ import annotations

from capbench.evidence.results import Results
from capbench.evidence.verdicts import Claim, Outcome, advantage, decided


def gru_against_lstm(results: Results) -> Outcome:
    """Table I: with the best encoder the GRU is ahead of the LSTM."""
    runs = results.first_with("gru", "lstm")
    if runs is None:
        return Outcome("pending", "needs gru and lstm with one encoder")
    sides = [runs.select(preset=name).latest for name in ("gru", "lstm")]
    return _compared(sides, f"on {runs.records[0].dataset} with {runs.records[0].encoder}, gru against lstm")


def stronger_encoder(results: Results) -> Outcome:
    """Table I: a stronger encoder writes better captions."""
    strong, weak = "timm/tf_efficientnet_lite2", "squeezenet1_0"
    for preset in ("gru", "lstm"):
        runs = results.select(dataset="flickr8k", preset=preset)
        sides = [runs.select(encoder=name).latest for name in (strong, weak)]
        if all(side.records for side in sides):
            return _compared(sides, f"on flickr8k with {preset}, {strong} against {weak}")
    return Outcome("pending", f"needs {strong} and {weak} with one decoder on flickr8k")


def _compared(sides: list[Results], what: str) -> Outcome:
    means = [sum(side.values("bleu4").values()) / len(side.values("bleu4")) for side in sides]
    return decided(advantage(sides[0], sides[1], "bleu4"), f"{what}: {means[0]:.1f}, {means[1]:.1f}", "bleu4")


CLAIMS = (
    Claim("GRU", "The GRU writes better captions than the LSTM.", "table I", gru_against_lstm),
    Claim("encoder", "A stronger encoder writes better captions.", "table I", stronger_encoder),
)
