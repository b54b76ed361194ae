"""What a model makes of the test pictures, by the kind of model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from capbench.base.errors import CapbenchError
from capbench.captioners.experiment import caption_images
from capbench.data.vocabulary import Vocabulary
from capbench.metrics.alignment import overlaps
from capbench.site.gallery.shown import Described, Entry, Found, Joined, Section, Shown, Written
from capbench.site.gallery.unseen import Looked
from capbench.tools.align import Aligned, align_words
from capbench.tools.caption import Captioned, beam_of, captions_of
from capbench.tools.markup import light_map
from capbench.tools.search import embedded, similarities

N_BEST, HITS, REGIONS = 5, 5, 6
Arrays = Mapping[str, np.ndarray]  # of the run's record


def common(images: int, pictures: int) -> list[int]:
    """The pictures that every run on the data shows: so many, evenly spread over all.

    >>> common(500, 3), common(2, 24)
    ([0, 250, 499], [0, 1])
    """
    return sorted({round(place) for place in np.linspace(0, images - 1, min(pictures, images))})


def extremes(values: Float[np.ndarray, " image"], each: int) -> dict[str, list[int]]:
    """The pictures with the highest values, those about the median, and those with the lowest; no picture twice.

    >>> extremes(np.array([3.0, 9, 1, 5, 7]), 1)
    {'best': [1], 'median': [3], 'worst': [2]}
    """
    order = np.argsort(-values, kind="stable")
    each = max(1, min(each, len(order) // 3))
    middle = (len(order) - each) // 2
    places = {"best": order[:each], "median": order[middle : middle + each], "worst": order[::-1][:each]}
    return {name: rows.tolist() for name, rows in places.items()}


def written(looked: Looked, arrays: Arrays, pictures: int) -> Shown:
    """A captioner: the best, the median and the worst pictures by CIDEr-D, and the common ones."""
    cider = arrays.get("cider", np.zeros(0))[: len(looked.array)]
    images = len(cider) or len(looked.array)
    groups = extremes(cider, max(1, pictures // 8)) if len(cider) else {}
    shared = common(images, pictures)
    wanted = sorted({*shared, *(image for group in groups.values() for image in group)})
    beam = beam_of(looked.trained)
    captioned = captions_of(looked.trained, looked.seen(wanted), beam, min(N_BEST, beam))
    by_image = {
        image: _written(image, made, cider, _recorded(looked.trained.vocabulary, arrays, image))
        for image, made in zip(wanted, captioned, strict=True)
    }
    titles = {"best": "Best by CIDEr-D", "median": "Median by CIDEr-D", "worst": "Worst by CIDEr-D"}
    sections = [_section(name, titles[name], (by_image[i] for i in group)) for name, group in groups.items()]
    return _shown(sections, "Test pictures, evenly spread", [by_image[i] for i in shared])


def _written(
    image: int, made: Captioned, cider: Float[np.ndarray, " scored"], recorded: str | None
) -> Written:  # fmt: skip
    existing = [n for n, log_prob in enumerate(made.log_probs) if log_prob > -np.inf]
    attention = made.attention[0] if made.attention and existing else np.zeros((0, 1))
    highest = float(attention.max()) if len(attention) else 1.0
    return Written(
        image=image,
        captions=tuple(made.captions[n] for n in existing),
        log_probs=tuple(round(made.log_probs[n], 4) for n in existing),
        cider=round(float(cider[image]), 2) if len(cider) else None,
        recorded=None if recorded == made.captions[0] else recorded,
        maps=tuple(light_map(weights, highest) for weights in attention),
        weights=tuple(round(float(weights.max()), 4) for weights in attention),
    )


def _recorded(vocabulary: Vocabulary, arrays: Arrays, image: int) -> str | None:
    if "captions" not in arrays:
        return None
    return " ".join(vocabulary.decode(arrays["captions"][image, 0].tolist()))


def described(looked: Looked, arrays: Arrays, pictures: int) -> Shown:
    """A captioner of regions: what it writes about the regions that have a box of their own."""
    shared = [_described(looked, image) for image in common(len(looked.array), pictures)]
    return _shown([], "Test pictures, evenly spread", shared)


def _described(looked: Looked, image: int) -> Described:
    """Of more regions than are shown, those whose text is likeliest by the word."""
    assert looked.boxes is not None
    count = int(looked.boxes.count[image]) if looked.boxes.provider != "multiscale" else len(looked.boxes.array[image])
    decoded = caption_images(looked.trained.model, looked.regions(image)[1:count], beam_of(looked.trained))
    texts = [" ".join(looked.trained.vocabulary.decode(words)) for words in decoded.words[:, 0].tolist()]
    log_probs = decoded.log_probs[:, 0].tolist()
    by_word = [log_prob / (len(text.split()) + 1) for text, log_prob in zip(texts, log_probs, strict=True)]
    best = sorted(np.argsort([-value for value in by_word], kind="stable")[:REGIONS].tolist())
    return Described(
        image=image,
        boxes=tuple(_box(looked.boxes.array[image, 1 + n]) for n in best),
        texts=tuple(texts[n] for n in best),
        log_probs=tuple(round(log_probs[n], 4) for n in best),
    )


def joined(looked: Looked, arrays: Arrays, pictures: int) -> Shown:
    """An alignment model: the pictures whose first caption it places worst, and the common ones.

    Worst is by the words of phrases that lie on what they name, or by the mean score of the words where true boxes are
    unknown.
    """
    made = {image: entry for image in range(len(looked.array)) if (entry := _joined(looked, image))}
    known = looked.test.part.phrases is not None

    def value(entry: Joined) -> float:
        if entry.right is not None:
            return entry.right / max(entry.of, 1) if entry.of else 1.0
        return float(np.mean([row[label] for row, label in zip(entry.scores, entry.labels, strict=True)]))

    worst = sorted(made.values(), key=value)[: max(1, pictures // 4)]
    title = "Failures first: most words of phrases beside what they name" if known else "Lowest scores first"
    shared = [made[image] for image in common(len(looked.array), pictures) if image in made]
    return _shown([_section("failures", title, worst)], "Test pictures, evenly spread", shared)


def _joined(looked: Looked, image: int) -> Joined | None:
    """The first caption of a picture; None where the model knows no word of it."""
    assert looked.boxes is not None
    part, caption = looked.test.part, looked.test.captions_of[image][0]
    try:
        sentence = looked.trained.read(part.captions[caption])
    except CapbenchError:
        return None
    boxes = looked.boxes.array[image]
    made = align_words(looked.trained, Path(part.image_names[image]), sentence, looked.regions(image)[None], boxes)
    right, of = (None, 0) if part.phrases is None else _on_their_things(looked, made, image, caption)
    return Joined(
        image=image,
        words=made.words,
        boxes=tuple(map(_box, boxes)),
        scores=tuple(tuple(round(score, 3) for score in row) for row in made.scores.tolist()),
        labels=tuple(made.labels.tolist()),
        beta=made.beta,
        right=right,
        of=of,
    )


def _on_their_things(looked: Looked, made: Aligned, image: int, caption: int) -> tuple[int, int]:
    """How many words of phrases have a region that overlaps by half what the phrase names; and how many there are."""
    part = looked.test.part
    assert part.phrases is not None
    height, width, _ = part.images[image].shape
    pixels = made.boxes * np.array([width, height, width, height], np.float32)
    hits = [
        overlaps(pixels, phrase.boxes)[made.labels[phrase.start : phrase.end]]
        for phrase in part.phrases[caption]
        if phrase.end <= len(made.labels)
    ]
    return sum(int(hit.sum()) for hit in hits), sum(map(len, hits))


def found(looked: Looked, arrays: Arrays, pictures: int) -> Shown:
    """A joint embedding: the queries whose first right result comes last, both ways, and the common ones."""
    part, captions_of_image = looked.test.part, looked.test.captions_of
    numbers = [looked.trained.vocabulary.encode_text(caption) for caption in part.captions]
    images = list(range(len(looked.array)))
    scores = similarities(looked.trained, looked.seen(images), embedded(looked.trained, numbers)).float().numpy()
    own = part.image_of_caption

    def of_caption(caption: int) -> Found:
        column, image = scores[:, caption], int(own[caption])
        return _found(column, [image], image, caption)

    def of_picture(image: int) -> Found:
        row = scores[image]
        return _found(row, captions_of_image[image], image, None)

    captions = [of_caption(caption) for caption in range(len(numbers))]
    asking = [of_picture(image) for image in images]
    most, shared = max(1, pictures // 4), common(len(images), pictures)
    sections = [
        _section("no-picture", "Failures: sentences whose picture comes late", _latest(captions, most)),
        _section("no-caption", "Failures: pictures whose captions come late", _latest(asking, most)),
    ]
    both = [entry for i in shared for entry in (captions[captions_of_image[i][0]], asking[i])]
    return _shown(sections, "Test pictures and their first captions, evenly spread", both)


def _found(scores: Float[np.ndarray, " candidate"], right: list[int], image: int, caption: int | None) -> Found:
    """The best of the candidates, and the rank of the first of the right ones; ties count against the model."""
    best = np.argsort(-scores, kind="stable")[:HITS]
    others = np.delete(scores, right)
    return Found(
        image=image,
        caption=caption,
        hits=tuple(best.tolist()),
        similarities=tuple(round(float(scores[n]), 4) for n in best),
        rank=1 + int((others >= scores[right].max()).sum()),
    )


def _latest(entries: Sequence[Found], most: int) -> list[Found]:
    """The entries with the highest ranks, one a picture."""
    ordered: dict[int, Found] = {}
    for entry in sorted(entries, key=lambda entry: -entry.rank):
        ordered.setdefault(entry.image, entry)
    return list(ordered.values())[:most]


def _section(name: str, title: str, entries: Iterable[Entry]) -> Section:
    return Section(name=name, title=title, entries=tuple(entries))


def _shown(sections: list[Section], title: str, shared: Sequence[Entry]) -> Shown:
    return Shown(sections=(*sections, _section("all", title, shared)), common=tuple(shared))


def _box(sides: Float[np.ndarray, " 4"]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (round(side, 4) for side in sides.tolist())
    return x0, y0, x1, y1
