"""The claims of Show, Attend and Tell, tested on our records."""

from __future__ import annotations

from capbench.evidence.verdicts import Claim, beats, points_at_what_is_named

CLAIMS = (
    Claim(
        "attention",
        "Attention writes better captions than the same decoder without it.",
        "section 5.3, table 1",
        beats("soft-ours", "none-ours", "bleu4_as_written_no_bp"),
    ),
    Claim(
        "hard against soft",
        "Hard attention is ahead of soft.",
        "table 1",
        beats("hard-ours", "soft-ours", "bleu4_as_written_no_bp"),
    ),
    Claim(
        "where it looks",
        "Attention lands on the object that a word names, more often than chance.",
        "section 5.4",
        points_at_what_is_named("soft-ours"),
    ),
)
