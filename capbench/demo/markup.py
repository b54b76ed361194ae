"""The answers as HTML. All text from outside is escaped, and all pictures are data URLs: no file is served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from capbench.data.images import decode
from capbench.runs.loaded import Trained
from capbench.runs.paper import paper
from capbench.tools.align import Aligned
from capbench.tools.caption import Captioned, as_seen
from capbench.tools.drawing import fitted
from capbench.tools.markup import (
    aligned_picture,
    aligned_table,
    aligned_words,
    attended,
    data_url,
    light_map,
    quoted,
    spoken,
    text,
)
from capbench.tools.search import Ranked

SIDE, THUMBNAIL = 640, 240  # pixels of the longer side


def refusal(message: str) -> str:
    """Why there is no answer."""
    return f'<p class="refusal" role="alert">{text(message)}</p>'


def unusable(reasons: Sequence[str]) -> str:
    """The finished runs that the page cannot offer, and why."""
    if not reasons:
        return ""
    rows = "".join(f"<li>{text(reason)}</li>" for reason in reasons)
    return f"<details><summary>Runs that cannot be used: {len(reasons)}</summary><ul>{rows}</ul></details>"


def about(trained: Trained) -> str:
    """The model beside its answer: preset and paper, data, encoder and seed."""
    job = trained.job
    title = paper(job.paper).title.partition(": ")[0]
    facts = (("model", f"{job.variant} of {title}"), ("trained on", job.dataset), ("encoder", job.encoder))
    terms = "".join(f"<div><dt>{name}</dt><dd>{text(value)}</dd></div>" for name, value in (*facts, ("seed", job.seed)))
    return f'<dl class="about">{terms}</dl>'


def _answer(trained: Trained, *parts: str, kind: str = "") -> str:
    """An answer between the model's warning, where it has one, and what the model is."""
    warning = _note(f"This model was {trained.warning}.") if trained.warning else ""
    return f'<div class="answer {kind}">{warning}{"".join(parts)}{about(trained)}</div>'


def _note(said: str) -> str:
    return f'<p class="note">{text(said)}</p>'


def _legend(said: str) -> str:
    return f'<p class="legend">{text(said)}</p>'


def captioned(trained: Trained, made: Captioned, how: str) -> str:
    """Captions with their log-probabilities, and the picture with a map of attention for each word."""
    existing = [n for n, log_prob in enumerate(made.log_probs) if log_prob > -np.inf]
    rows = []
    for n in existing:
        words, log_prob = made.captions[n], made.log_probs[n]
        mean = log_prob / (len(words.split()) + 1)
        shown = f'<span class="words">{text(words) if words else "<em>(no word)</em>"}</span>'
        if made.attention:
            shown = f'<button type="button" data-caption="{n}" aria-pressed="{str(n == 0).lower()}">{shown}</button>'
        rows.append(f"<li>{shown}<small>log p = {log_prob:.2f}, {mean:.2f} a word</small></li>")
    legend = f"{how}. log p: the natural logarithm of a caption's probability, and its mean over the words and the end."
    return _answer(trained, f'<ol class="captions">{"".join(rows)}</ol>', _legend(legend), _looked(made, existing))


def _looked(made: Captioned, existing: Sequence[int]) -> str:
    """The picture as the model saw it, and for each caption its words, which light it up on one scale."""
    image = (
        f'<img src="{data_url(as_seen(decode(made.picture), made.view, SIDE))}" alt="The picture as the model sees it">'
    )
    if not made.attention:
        without = "This model has no attention: it sees the picture as one vector, or as a few regions."
        return f'<figure class="looked"><div class="stage">{image}</div><figcaption>{without}</figcaption></figure>'
    highest = max(float(made.attention[n].max()) for n in existing)
    return attended(image, [_words(made, n, highest, hidden=n != existing[0]) for n in existing], highest)


def _words(made: Captioned, n: int, highest: float, hidden: bool) -> str:
    """A caption whose words light up the picture."""
    attention = made.attention[n]
    words = [*made.captions[n].split(), "(end)"][: len(attention)]
    maps = [light_map(weights, highest) for weights in attention]
    return spoken(words, maps, [float(weights.max()) for weights in attention], n, hidden)


def found_pictures(trained: Trained, ranked: Ranked, place: str) -> str:
    """Pictures in a grid, best first."""
    hits = "".join(
        f'<li><img src="{data_url(_thumbnail(path))}" alt="{quoted(path.name)}">'
        f"<span>{text(path.name)}</span><small>similarity {similarity:.3f}</small></li>"
        for path, similarity in ranked.pictures
    )
    return _found(trained, ranked, f'<ol class="hits">{hits}</ol>', place)


def found_captions(trained: Trained, ranked: Ranked, place: str) -> str:
    """Captions in a list, best first."""
    hits = "".join(
        f'<li><span class="words">{text(line)}</span><small>similarity {similarity:.3f}</small></li>'
        for line, similarity in ranked.captions
    )
    return _found(trained, ranked._replace(unknown=()), f'<ol class="captions">{hits}</ol>', place)


def _found(trained: Trained, ranked: Ranked, hits: str, place: str) -> str:
    return _answer(trained, _unknown(ranked.unknown), _legend(f"The best of {place}."), hits)


def aligned(trained: Trained, made: Aligned) -> str:
    """The picture with the regions that have words, and the words in the colours of their regions."""
    picture = fitted(decode(made.picture), SIDE)
    image = f'<img src="{data_url(picture)}" alt="">'
    legend = (
        f"Score: the mean inner product of a region and its words. Affinity: {made.beta:g}. "
        "Grey words have the whole picture."
    )
    parts = aligned_words(made), aligned_picture(made, image, picture.size), aligned_table(made)
    return _answer(trained, _unknown(made.unknown), *parts, _legend(legend), kind="aligned")


def _unknown(words: Sequence[str]) -> str:
    listed = ", ".join(words)
    return _note(f"The model does not know: {listed}.") if words else ""


def _thumbnail(path: Path) -> Image.Image:
    return fitted(decode(path), THUMBNAIL)
