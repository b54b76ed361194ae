"""What the pages say in one cell: numbers with intervals and verdicts, a setting, a caution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, itemgetter
from urllib.parse import quote

from capbench.base.grouping import grouped
from capbench.evidence.verdicts import RULES, Verdict
from capbench.leaderboard.markdown import DASH, Notes, code, escape
from capbench.leaderboard.pooled import Runs, marks
from capbench.metrics.registry import Metric
from capbench.metrics.significance import Interval
from capbench.runs.paper import Paper
from capbench.training import checkpoint

SIGNS: Mapping[str, str] = {rule.status: rule.sign for rule in RULES}
COMPUTED_WITH = {  # fields of a record that decide the last digits of a number, in words
    "instruction_set": "instruction set",
    "blas": "BLAS",
    "precision": "precision",
    "threads": "number of threads",
}
Seeds = Callable[[Runs], str]  # the cell of a setting's seeds: `seed_count` or `seed_links`
_SPACE = "\u00a0"


def ours(
    runs: Runs,
    members: Sequence[Metric],
    notes: Notes,
    verdicts: Mapping[str, Verdict] | None = None,
    halves: bool = True,
) -> str:
    """The means of metrics that share a column, each with half of its 95 % interval and the sign of its verdict.

    A metric that no record has is a dash with its reason; a column of such metrics is one dash.
    """
    if all(runs.estimate(entry.key) is None for entry in members):
        return DASH + notes.mark(runs.why_missing(members[0].key))
    return " / ".join(_mean(runs, entry, notes, (verdicts or {}).get(entry.key), halves) for entry in members)


def _mean(runs: Runs, shown: Metric, notes: Notes, judged: Verdict | None, halves: bool) -> str:
    estimate = runs.estimate(shown.key)
    if estimate is None:
        return DASH + notes.mark(runs.why_missing(shown.key))
    text = f"{estimate.mean:.{shown.digits}f}"
    if halves and estimate.half is not None:
        text += f"{_SPACE}±{_SPACE}{estimate.half:.{shown.digits}f}"
    if judged and judged.status in SIGNS:
        text += f"{_SPACE}{SIGNS[judged.status]}"
    if len(estimate.values) < len(runs.records):
        have = ", ".join(map(str, sorted(estimate.values)))
        text += notes.mark(f"{shown.heading} from seed {have} alone: {runs.why_missing(shown.key)}")
    return text


def model(runs: Runs) -> str:
    """The encoder, the crop, and where the records are from unless they are committed."""
    words = (runs.first.encoder, runs.first.sees, runs.origin)
    return ", ".join(escape(word) for word in words if word) or DASH


def beam(runs: Runs) -> str:
    """The width of the beam that wrote the captions, and BLEU at the recipe's width; empty for other models.

    "beam 3 (seeds 0, 2), 4 (seed 1), chosen on validation; at the recipe's 20: BLEU 57.4 / 39.1 / 25.6 / 16.5".
    """
    by_width = grouped(runs.results.values("beam").items(), itemgetter(1))
    if not by_width:
        return ""
    several = len(by_width) > 1
    of = {width: f" ({seeds([seed for seed, _ in pairs])})" * several for width, pairs in by_width.items()}
    widths = ", ".join(f"{width:.0f}{of[width]}" for width in by_width)
    if not runs.first.recipe.get("choose_beam"):
        return f"beam {widths}"
    published = runs.first.recipe["beam_size"]
    scores = [runs.estimate(f"bleu{n}_beam{published}") for n in (1, 2, 3, 4)]
    at_its_own = " / ".join(f"{score.mean:.1f}" for score in scores if score)
    return f"beam {widths}, chosen on validation; at the recipe's {published}: BLEU {at_its_own or DASH}"


def preset(runs: Runs, paper: Paper, notes: Notes) -> str:
    """The name of the preset, with raised letters for the width of its beam and for a caution."""
    name, warned = code(runs.first.variant), cautions(runs, paper)
    marked = [notes.mark(note) for note in (beam(runs), "Caution: " + "; ".join(warned) if warned else "") if note]
    return name + "".join(marked)


def cautions(runs: Runs, paper: Paper) -> list[str]:
    """What a reader must know of the records of a setting, and in what they differ that should be the same."""
    marked = grouped(((mark, r.seed) for r in runs.records for mark in marks(r, paper)), itemgetter(0))
    found = [f"{mark} (seed {', '.join(str(seed) for _, seed in pairs)})" for mark, pairs in marked.items()]
    if any(checkpoint.differences(runs.first.recipe, record.recipe) for record in runs.records):
        found.append("the seeds differ in their recipe")
    if any(record.features_fingerprint != runs.first.features_fingerprint for record in runs.records):
        found.append("the seeds differ in their features fingerprint")
    found += filter(None, (_differing(runs, name, words) for name, words in COMPUTED_WITH.items()))
    return found


def _differing(runs: Runs, name: str, words: str) -> str:
    """How the seeds differ in a field: "...: AVX2 (seed 0), AVX512 (seeds 1, 2)".

    A blank field is unknown, and no difference.
    """
    by_value = grouped((record for record in runs.records if getattr(record, name)), attrgetter(name))
    values = (f"{value} ({seeds([record.seed for record in records])})" for value, records in by_value.items())
    return f"the seeds differ in their {words}: {', '.join(values)}" if len(by_value) > 1 else ""


def seed_count(runs: Runs) -> str:
    """How many seeds a setting has."""
    return str(len(runs.records))


def seed_links(runs: Runs) -> str:
    """The seeds of a setting, each a link to its record."""
    return " ".join(f"[{r.seed}](results/{quote(r.file)})" if r.file else str(r.seed) for r in runs.records)


def seeds(numbers: Sequence[int]) -> str:
    """ "seed 0", "seeds 1, 2"."""
    return f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def counts(tally: Counter[str]) -> str:
    """ "3 matched or better, 1 close, 2 short, 4 not run"."""
    words = [f"{tally['exceeds'] + tally['reproduced']} matched or better"]
    return ", ".join(words + [f"{tally[status]} {status}" for status in ("close", "short", "not run")])


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f}{_SPACE}s"
    return f"{seconds / 60:.0f}{_SPACE}min" if seconds < 7200 else f"{seconds / 3600:.1f}{_SPACE}h"


def difference(interval: Interval) -> str:
    """A signed difference with its 95 % interval."""
    values = (interval.mean, interval.low, interval.high)
    digits = 1 if max(map(abs, values)) >= 1 else 3
    mean, low, high = (f"{value:+.{digits}f}" for value in values)
    return f"{mean}{_SPACE}[{low},{_SPACE}{high}]"
