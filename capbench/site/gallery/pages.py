"""The pages of galleries, their pictures, and what puts two runs side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from capbench.base.grouping import grouped
from capbench.data.captions import Box
from capbench.leaderboard.markdown import plain
from capbench.runs.paper import paper
from capbench.site.gallery.finding import Gallery
from capbench.site.gallery.shown import Described, Entry, Found, Joined, Written
from capbench.site.gallery.thumbnails import NOTICE, Thumbnails, caution, file_name
from capbench.tools import markup
from capbench.tools.align import Aligned, distinct_colours
from capbench.tools.markup import quoted, text

FOLDER = "galleries"
INDEX = f"{FOLDER}/index.md"


def page_of(gallery: Gallery) -> str:
    """The path of a gallery's page."""
    return f"{FOLDER}/{gallery.name}.md"


def called(gallery: Gallery) -> str:
    """A gallery in a list of those of its data; what tells runs apart comes first."""
    job = gallery.job
    return plain(f"{job.variant}, seed {job.seed}, {job.encoder} ({paper(job.paper).title.partition(': ')[0]})")


def files(galleries: Sequence[Gallery], made: Environment, records: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Every page and file of some galleries; `records` has the page of each record that the site shows."""
    thumbnails = Thumbnails()
    made = made.overlay()
    made.filters |= {"text": text}
    groups = grouped(galleries, lambda gallery: (gallery.job.dataset, gallery.kind.title))
    for (dataset, title), group in groups.items():
        beside = f"beside-{file_name(dataset)}-{group[0].kind.name}" if len(group) > 1 else ""
        for gallery in group:
            bodies = _Bodies(gallery, thumbnails, made)
            record = records.get(gallery.record.file, "") if gallery.record else ""
            yield page_of(gallery), _page(bodies, made, beside, record).encode()
            if beside:
                parts = {_key(entry): bodies.of(entry) for entry in gallery.shown.common}
                shown = json.dumps({"name": gallery.name, "parts": parts})  # nothing in it but ASCII
                yield f"{FOLDER}/{gallery.name}.js", f"capbenchGallery({shown});\n".encode()
        if beside:
            yield f"{FOLDER}/{beside}.md", _beside(title, group, made).encode()
    yield INDEX, made.get_template("galleries.md.j2").render(groups=_listed(groups)).encode()
    yield from thumbnails.files.items()
    if cautions := sorted({words for gallery in galleries if (words := caution(gallery.test))}):
        yield NOTICE, "".join(f"{FOLDER}/ holds {words}.\n" for words in cautions).encode()


def _listed(groups: Mapping[tuple[str, str], Sequence[Gallery]]) -> list[dict[str, Any]]:
    return [
        {
            "dataset": dataset,
            "title": title,
            "beside": f"beside-{file_name(dataset)}-{group[0].kind.name}.html" if len(group) > 1 else "",
            "caution": caution(group[0].test),
            "runs": [(f"{gallery.name}.html", called(gallery)) for gallery in group],
        }
        for (dataset, title), group in groups.items()
    ]


def _page(bodies: _Bodies, made: Environment, beside: str, record: str) -> str:
    gallery = bodies.gallery
    sections = [
        (section, [(_heading(gallery, entry), bodies.of(entry)) for entry in section.entries])
        for section in gallery.shown.sections
    ]
    return made.get_template("gallery.md.j2").render(
        title=_title(f"Gallery of {gallery.job.variant}, seed {gallery.job.seed}"),
        gallery=gallery,
        called=called(gallery),
        paper=paper(gallery.job.paper),
        caution=caution(gallery.test),
        crop=gallery.view in ("1C", "RC"),
        record=record.replace(".md", ".html"),
        beside=f"{beside}.html#a={gallery.name}" if beside else "",
        sections=sections,
    )


def _beside(title: str, group: Sequence[Gallery], made: Environment) -> str:
    headings = {_key(entry): _heading(gallery, entry) for gallery in group for entry in gallery.shown.common}
    return made.get_template("beside.md.j2").render(
        title=_title(f"{title} of two runs"),
        heading=f"{title} of two runs",
        kind=group[0].kind.name,
        dataset=group[0].job.dataset,
        caution=caution(group[0].test),
        runs=[(gallery.name, called(gallery)) for gallery in group],
        rows=list(headings.items()),
    )


def _title(words: str) -> str:
    return json.dumps(escape(plain(words)))  # MkDocs takes titles for HTML


def _key(entry: Entry) -> str:
    """What an entry asks, the same for all runs on the data."""
    return f"caption-{entry.caption}" if isinstance(entry, Found) and entry.caption is not None else f"{entry.image}"


def _heading(gallery: Gallery, entry: Entry) -> str:
    name = gallery.test.part.image_names[entry.image]
    if not isinstance(entry, Found):
        return name
    return f"{name}: its captions" if entry.caption is None else f"{name}: a sentence asks"


class _Bodies:
    """The HTML of the entries of a gallery, below their headings."""

    def __init__(self, gallery: Gallery, thumbnails: Thumbnails, made: Environment) -> None:
        self.gallery = gallery
        self.thumbnails = thumbnails
        self.made = made

    def of(self, entry: Entry) -> str:
        """An entry's HTML on one line."""
        fields = getattr(self, f"_{entry.kind}")(entry)
        html = self.made.get_template(f"{entry.kind}.html.j2").render(entry=entry, **fields)
        return " ".join(html.split())

    def _picture(self, image: int, alt: str | None = None) -> tuple[str, tuple[int, int]]:
        path, (width, height) = self.thumbnails.of(self.gallery.test, image, self.gallery.view)
        name = f"Test picture {self.gallery.test.part.image_names[image]}" if alt is None else alt
        address = path.removeprefix(f"{FOLDER}/")
        html = f'<img src="{address}" alt="{quoted(name)}" width="{width}" height="{height}" loading="lazy">'
        return html, (width, height)

    def _references(self, image: int) -> list[str]:
        part = self.gallery.test.part
        return [part.captions[caption] for caption in self.gallery.test.captions_of[image]]

    def _written(self, entry: Written) -> dict[str, Any]:
        picture, _ = self._picture(entry.image)
        highest = max(entry.weights, default=0.0)
        words = [*entry.captions[0].split(), "(end)"][: len(entry.maps)] if entry.captions else []
        said = markup.spoken(words, entry.maps, entry.weights, 0, hidden=False)
        figure = markup.attended(picture, [said], highest) if entry.maps else f'<div class="stage">{picture}</div>'
        ranked = [
            (caption, log_prob, log_prob / (len(caption.split()) + 1))
            for caption, log_prob in zip(entry.captions, entry.log_probs, strict=True)
        ]
        return {"figure": figure, "ranked": ranked, "references": self._references(entry.image)}

    def _described(self, entry: Described) -> dict[str, Any]:
        picture, size = self._picture(entry.image)
        boxes, truth = np.array(entry.boxes).reshape(-1, 4), self._things(entry.image, size)
        numbered = list(enumerate(zip(boxes, distinct_colours(len(boxes)), strict=True), start=1))
        frames = [markup.frame(box, size, n, f"{n}", colour) for n, (box, colour) in numbered]
        said = ", ".join(f"{n}: {words}" for n, words in enumerate(entry.texts, start=1))
        rows = "".join(
            markup.row(n, f"{markup.chip(f'{n}', colour)} {text(words)}", markup.where(box), f"{log_prob:.2f}")
            for (n, (box, colour)), words, log_prob in zip(numbered, entry.texts, entry.log_probs, strict=True)
        )
        return {
            "figure": markup.framed(picture, size, said, frames, truth),
            "table": markup.table(("what it writes", "region", "log p"), rows),
            "true": bool(truth),
            "references": self._references(entry.image),
        }

    def _joined(self, entry: Joined) -> dict[str, Any]:
        picture, size = self._picture(entry.image)
        test = self.gallery.test
        arrays = np.array(entry.boxes), np.array(entry.scores), np.array(entry.labels)
        made = Aligned(Path(), entry.words, *arrays, entry.beta)  # its picture is the thumbnail
        truth = self._things(entry.image, size, test.captions_of[entry.image][0])
        return {
            "words": markup.aligned_words(made),
            "figure": markup.aligned_picture(made, picture, size, truth),
            "table": markup.aligned_table(made),
            "true": bool(truth),
        }

    def _things(self, image: int, size: tuple[int, int], caption: int | None = None) -> list[Box]:
        """The true boxes of a picture, or of what one of its captions names, in the pixels of its thumbnail."""
        part = self.gallery.test.part
        if part.phrases is None:
            return []
        captions = self.gallery.test.captions_of[image] if caption is None else [caption]
        boxes = {box for caption in captions for phrase in part.phrases[caption] for box in phrase.boxes}
        height, width, _ = part.images[image].shape
        across, down = size[0] / width, size[1] / height
        return [(x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in sorted(boxes)]

    def _found(self, entry: Found) -> dict[str, Any]:
        part = self.gallery.test.part
        picture, _ = self._picture(entry.image)
        own = self.gallery.test.captions_of[entry.image]
        hits = []
        for hit, similarity in zip(entry.hits, entry.similarities, strict=True):
            right = hit in own if entry.caption is None else hit == entry.image
            shown = text(part.captions[hit]) if entry.caption is None else self._picture(hit)[0]
            hits.append((shown, similarity, right))
        return {
            "picture": picture,
            "query": None if entry.caption is None else part.captions[entry.caption],
            "hits": hits,
            "candidates": len(part.captions) if entry.caption is None else len(part.image_names),
            "references": self._references(entry.image),
        }
