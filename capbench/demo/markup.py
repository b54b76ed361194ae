"""The answers as HTML. All text from outside is escaped, and all pictures are data URLs: no file is served."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from capbench.data.images import decode
from capbench.leaderboard.markdown import plain
from capbench.runs.loaded import Trained
from capbench.runs.paper import paper
from capbench.tools.align import WHOLE, Aligned, region_colours
from capbench.tools.caption import Captioned, as_seen, light
from capbench.tools.drawing import fitted
from capbench.tools.search import Ranked

SIDE, THUMBNAIL, MAP = 640, 240, 96  # pixels of the longer side


def text(value: object) -> str:
    """Text that shows as itself, whatever is in it, and leaves the direction of its surroundings alone."""
    return f"<bdi>{escape(plain(value, 2000))}</bdi>"


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
    picture = as_seen(made, SIDE)
    image = f'<img src="{_url(picture)}" alt="The picture as the model sees it">'
    if not made.attention:
        without = "This model has no attention: it sees the picture as one vector, or as a few regions."
        return f'<figure class="looked"><div class="stage">{image}</div><figcaption>{without}</figcaption></figure>'
    highest = max(float(made.attention[n].max()) for n in existing)
    groups = "".join(_words(made, n, highest, hidden=n != existing[0]) for n in existing)
    scale = (
        '<figcaption>Attention weight of a location: <span class="ramp"><span>0</span><i></i>'
        f"<span>{highest:.3f}</span></span> One scale for all words; the weights of a word sum to 1.</figcaption>"
    )
    play = '<button type="button" class="play" aria-pressed="false">Play</button>'
    return (
        f'<figure class="looked"><div class="stage">{image}<img class="light" alt="" hidden></div>'
        f"{groups}<p>{play} or choose a word.</p>{scale}</figure>"
    )


def _words(made: Captioned, n: int, highest: float, hidden: bool) -> str:
    """A caption whose words are buttons, each with its map."""
    words = [*made.captions[n].split(), "(end)"]
    buttons = []
    for word, weights in zip(words, made.attention[n], strict=False):
        grey = Image.fromarray((light(weights / highest, (MAP, MAP)) * 255).astype(np.uint8))
        data = f'data-light="{_url(grey)}" data-highest="{weights.max():.3f}"'
        buttons.append(f'<button type="button" {data} aria-pressed="false">{text(word)}</button>')
    return f'<p class="spoken" data-caption="{n}"{" hidden" * hidden}>{" ".join(buttons)}</p>'


def found_pictures(trained: Trained, ranked: Ranked, place: str) -> str:
    """Pictures in a grid, best first."""
    hits = "".join(
        f'<li><img src="{_url(_thumbnail(path))}" alt="{escape(plain(path.name))}">'
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
    colours = {region: f"rgb({red} {green} {blue})" for region, (red, green, blue) in region_colours(made).items()}
    numbers = {region: f"{n}" for n, region in enumerate(sorted(set(colours) - {WHOLE}), 1)} | {WHOLE: ""}
    boxes = "".join(_box(made, region, numbers[region], colours[region], picture.size) for region in numbers if region)
    said = ", ".join(f"{made.text(snippet)}: {_where(made, snippet.region)}" for snippet in made.snippets)
    drawn = f'<svg viewBox="0 0 {picture.width} {picture.height}" role="img" aria-label="{escape(plain(said, 2000))}">'
    words = " ".join(
        f'<button type="button" data-region="{region}" style="background: {colours[region]}">'
        f"{text(word)}<sup>{numbers[region]}</sup></button>"
        for word, region in zip(made.words, made.labels.tolist(), strict=True)
    )
    rows = ""
    for snippet in made.snippets:
        chip = f'<i style="background: {colours[snippet.region]}">{numbers[snippet.region]}</i>'
        cells = (f"{chip} {text(made.text(snippet))}", _where(made, snippet.region), f"{snippet.score:.2f}")
        rows += f'<tr data-region="{snippet.region}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
    legend = (
        f"Score: the mean inner product of a region and its words. Affinity: {made.beta:g}. "
        "Grey words have the whole picture."
    )
    table = f"<table><thead><tr><th>words</th><th>region</th><th>score</th></tr></thead><tbody>{rows}</tbody></table>"
    stage = f'<div class="stage"><img src="{_url(picture)}" alt="">{drawn}{boxes}</svg></div>'
    spoken = f'<p class="spoken">{words}</p>'
    return _answer(trained, _unknown(made.unknown), spoken, stage, table, _legend(legend), kind="aligned")


def _box(made: Aligned, region: int, number: str, colour: str, size: tuple[int, int]) -> str:
    """A region's frame with its number in a corner: who sees no colours goes by the numbers."""
    x0, y0, x1, y1 = (made.boxes[region] * (*size, *size)).tolist()
    frame = f'<rect class="frame" x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" />'
    tag = f'<rect class="tag" x="{x0:.1f}" y="{y0:.1f}" width="26" height="26" />'
    label = f'<text x="{x0 + 13:.1f}" y="{y0 + 19:.1f}">{number}</text>'
    return f'<g data-region="{region}" style="--colour: {colour}">{frame}{tag}{label}</g>'


def _where(made: Aligned, region: int) -> str:
    if region == WHOLE:
        return "the whole picture"
    x0, y0, x1, y1 = (round(100 * side) for side in made.boxes[region].tolist())
    return f"{x0}–{x1} % across, {y0}–{y1} % down"


def _unknown(words: Sequence[str]) -> str:
    listed = ", ".join(words)
    return _note(f"The model does not know: {listed}.") if words else ""


def _thumbnail(path: Path) -> Image.Image:
    return fitted(decode(path), THUMBNAIL)


def _url(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
