"""What an encoder's features tell of the words of captions: a probe of a data set, as a record."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice

import numpy as np

from capbench.base.errors import CapbenchError
from capbench.base.provenance import provenance
from capbench.data.captions import CaptionDataset, Split
from capbench.evidence.probes import ProbeEntry, ProbeRecord
from capbench.metrics.probe import Seen, content_words, presence, probe
from capbench.vision.encoders import Encoder
from capbench.vision.extraction import View
from capbench.vision.features import features

WORDS = 200
IMAGES = (1000, 2000)  # training images, besides all of them
SEED = 0  # of the order in which they are taken


def probe_encoder(dataset: CaptionDataset, encoder: Encoder, view: View, images: Sequence[int] = ()) -> ProbeRecord:
    """The probe of an encoder's vectors, fitted on each of these numbers of training images.

    Without `images`, on 1,000, on 2,000 and on all. The words are the 200 most frequent content words of the training
    captions that some but not all images of the validation and of the test split have. Raises CapbenchError if there is
    none, for more training images than there are, and as `features` does.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    own, *held_out = (words_of_images(dataset.split(name)) for name in ("train", "val", "test"))
    images = sorted(images or {number for number in IMAGES if number < len(own)} | {len(own)})
    if not 0 < images[0] <= images[-1] <= len(own):
        raise CapbenchError(f"{dataset.name} has {len(own):,} training images, not {images[-1]:,}; give --images")
    telling = (word for word in content_words(own) if all(_divides(word, split) for split in held_out))
    words = list(islice(telling, WORDS))
    if not words:
        raise CapbenchError(f"no content word divides the validation and the test images of {dataset.name}")
    stored = features(dataset, encoder, view, progress=True)
    train, val, test = (
        Seen(np.asarray(stored.array[dataset.split(name).image_index]), presence(of_images, words))
        for name, of_images in zip(("train", "val", "test"), (own, *held_out), strict=True)
    )
    order, entries = np.random.default_rng(SEED).permutation(len(own)), []
    for number in images:
        taken = order[:number]
        found = probe(Seen(train.features[taken], train.present[taken]), val, test)
        entries.append(
            ProbeEntry(
                images=number,
                penalty=float(f"{found.penalty:.4g}"),
                area=round(found.area, 6),
                areas=tuple(np.round(found.areas, 4).tolist()),
                influence=tuple(np.round(found.influence, 4).tolist()),
            )
        )
    made_by = provenance(encoder.mean.device)
    return ProbeRecord(
        dataset=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        encoder=encoder.name,
        encoder_fingerprint=encoder.fingerprint,
        features_fingerprint=stored.fingerprint,
        view=view,
        dim=stored.array.shape[1],
        words=tuple(words),
        seed=SEED,
        entries=tuple(entries),
        started=started,
        command=command(dataset.place or dataset.name, encoder.name, view, images),
        **{name: made_by[name] for name in ("commit", "dirty", "versions", "device", "threads")},
    )


def _divides(word: str, images: Sequence[set[str]]) -> bool:
    """Whether some but not all of the images have a word."""
    return 0 < sum(word in words for words in images) < len(images)


def words_of_images(split: Split) -> list[set[str]]:
    """The words of each image's captions together."""
    words: list[set[str]] = [set() for _ in split.image_index]
    for tokens, image in zip(split.tokens, split.image_of_caption, strict=True):
        words[image].update(tokens)
    return words


def command(dataset: str, encoder: str, view: str, images: Sequence[int]) -> str:
    """The command that makes a record again."""
    words = ["capbench", "probe", encoder, "--dataset", dataset, "--view", view, "--images", *map(str, images)]
    return shlex.join(words)
