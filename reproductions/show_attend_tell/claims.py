"""What Show, Attend and Tell claims, made executable on our records."""

from __future__ import annotations

from capbench.results import Results
from capbench.verdicts import Claim, Outcome, advantage, beats, decided


def looks_at_the_object(results: Results) -> Outcome:
    """Section 5.4, on scenes, where the true boxes are known: attention lands on what is being named."""
    part = results.select(dataset="scenes", preset="soft").latest
    if not part.values("pointing"):
        return Outcome("pending", "needs soft on scenes")
    hits, chance = (sum(part.values(name).values()) / len(part.records) for name in ("pointing", "pointing_chance"))
    interval = advantage(part, part, "pointing", "pointing_chance")
    return decided(interval, f"on scenes: the heaviest location hits {hits:.1f} %, chance {chance:.1f} %", "pointing")


CLAIMS = (
    Claim(
        "attention",
        "Attention writes better captions than the same decoder without it.",
        "section 5.3, table 1",
        beats("soft", "none", "bleu4_no_bp"),
    ),
    Claim("hard against soft", "Hard attention is ahead of soft.", "table 1", beats("hard", "soft", "bleu4_no_bp")),
    Claim(
        "where it looks",
        "Attention lands on the object that a word names, more often than chance.",
        "section 5.4",
        looks_at_the_object,
    ),
)
