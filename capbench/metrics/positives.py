"""Retrieval with all positives: ECCV Caption and CxC, which know of COCO's test images and captions what fits what.

COCO gives a caption one image, though others fit it as well. ECCV Caption (Chun et al., ECCV 2022) and CxC (Parekh et
al., EACL 2021) had people look for them. Candidates are 5,000 images or 25,000 captions; the queries of ECCV Caption
are 1,261 images and 1,332 captions, those of CxC 5,000 images and 24,972 captions. The positives come with the package
`eccv_caption`; all counts are made here.

With R positives of a query, R-Precision is the share of positives among the first R candidates, and mAP@R the mean over
the first R places of the precision up to a place if a positive is there, else 0. A tie counts against the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

from capbench.base.errors import CapbenchError, listed
from capbench.data.captions import duplicates
from capbench.kernels._arguments import Array, check_unit_length, tensors
from capbench.metrics.places import DEEPEST, FAR, ByFunction, ByMatrix, ByName, Lists, Places, measured, places_of
from capbench.metrics.registry import POSITIVES
from capbench.metrics.retrieval import SIMILARITIES, Similarity

PROTOCOLS = {"eccv": "ECCV Caption", "cxc": "CxC"}

Evaluated = tuple[dict[str, float], dict[str, NDArray[np.generic]]]


@dataclass(frozen=True)
class Positives:
    """What fits what, by COCO's ids."""

    protocol: str
    captions_of: Lists  # the positives of each image that is a query
    images_of: Lists  # of each caption that is one
    image_of_caption: Mapping[int, int]  # COCO's own: its captions and images are the candidates

    @property
    def images(self) -> list[int]:
        return list(dict.fromkeys(self.image_of_caption.values()))


@lru_cache(maxsize=2)
def load_positives(protocol: str) -> Positives:
    """The positives of "eccv" or "cxc", from the JSON files of the package `eccv_caption`; its code is not run.

    Raises CapbenchError for another protocol, and without the package.
    """
    if protocol not in PROTOCOLS:
        raise CapbenchError(f"unknown protocol {protocol!r} of positives; choose one of {', '.join(PROTOCOLS)}")
    spec = find_spec("eccv_caption")
    if spec is None or not spec.submodule_search_locations:
        raise CapbenchError(f"{PROTOCOLS[protocol]} needs its positives: pip install 'capbench[eccv]'")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    own = _read(folder / "original_caption_to_image.json")
    captions_of, images_of = (
        _read(folder / f"{protocol}_{way}.json") for way in ("image_to_caption", "caption_to_image")
    )
    return Positives(protocol, captions_of, images_of, {caption: images[0] for caption, images in own.items()})


def evaluate_positives(
    images: Float[Array, "image dim"], captions: Float[Array, "caption dim"], image_ids: Int[Array, " image"],
    caption_ids: Int[Array, " caption"], protocol: str, similarity: Similarity = "cosine",
) -> Evaluated:  # fmt: skip
    """Metrics in percent, and the values of each query that they are the means of, from embeddings.

    `image_ids` are COCO's, `caption_ids` its annotation ids (Karpathy's cocoid and sentid). Rows beyond the 5,000
    images and 25,000 captions are left out. `similarity` is as for `embedding_ranks`, with its ties.
    Memory is a tile of similarities. Raises CapbenchError for ids that are given twice or missing, for NaN, and as
    `embedding_ranks` does.
    """
    positives = load_positives(protocol)
    images, captions, image_ids, caption_ids = tensors(
        images=(images, "float image dim+"), captions=(captions, "float caption dim"),
        image_ids=(image_ids, "int image"), caption_ids=(caption_ids, "int caption"),
    )  # fmt: skip
    if isinstance(similarity, str) and similarity not in SIMILARITIES:
        raise CapbenchError(f"similarity must be {', '.join(SIMILARITIES)} or a function, not {similarity!r}")
    if similarity == "cosine":
        check_unit_length(images=images, captions=captions)
    wide = torch.promote_types(torch.promote_types(images.dtype, captions.dtype), torch.float32)
    rows, columns = _chosen(positives, image_ids.tolist(), caption_ids.tolist())
    images, captions = (each.detach().cpu().to(wide) for each in (images, captions))
    images, captions = images[list(rows)], captions[list(columns)]
    if isinstance(similarity, str):
        ways: ByMatrix = ByName(images, captions, similarity)
    else:
        ways = ByFunction(images, captions, similarity)
    return _evaluated(positives, list(rows.values()), list(columns.values()), ways)


def matrix_positives(
    similarity: Float[Array, "image caption"], image_ids: Int[Array, " image"], caption_ids: Int[Array, " caption"],
    protocol: str,
) -> Evaluated:  # fmt: skip
    """As `evaluate_positives`, from a whole similarity matrix; higher is closer."""
    positives = load_positives(protocol)
    similarity, image_ids, caption_ids = tensors(
        similarity=(similarity, "float image caption"),
        image_ids=(image_ids, "int image"), caption_ids=(caption_ids, "int caption"),
    )  # fmt: skip
    rows, columns = _chosen(positives, image_ids.tolist(), caption_ids.tolist())
    ways = ByMatrix(similarity, torch.tensor(list(rows)), torch.tensor(list(columns)))
    return _evaluated(positives, list(rows.values()), list(columns.values()), ways)


def list_positives(captions_of: Lists, images_of: Lists, protocol: str) -> Evaluated:
    """As `evaluate_positives`, from the ranked ids of each query, the closest first.

    Ids that are no candidates are passed over. Raises CapbenchError for a query without a list, an id that is twice in
    one, and a list that is shorter than the query's positives and than 10 where the protocol has R@10.
    """
    positives = load_positives(protocol)
    values, candidates = {}, {"caption": set(positives.image_of_caption), "image": set(positives.images)}
    for way, kind, query, lists, wanted in (
        ("image_to_caption", "caption", "image", captions_of, positives.captions_of),
        ("caption_to_image", "image", "caption", images_of, positives.images_of),
    ):
        _refuse_missing([name for name in wanted if name not in lists], f"{query}s have no ranked list")
        found = []
        for name, fitting in wanted.items():
            ranked = [each for each in lists[name] if each in candidates[kind]]
            if twice := duplicates(ranked):
                raise CapbenchError(f"the list of {query} {name} has {kind} {twice[0]} twice; rank each once")
            needed = max(len(fitting), DEEPEST if "r10" in POSITIVES[protocol][1] else 1)
            if len(ranked) < min(needed, len(candidates[kind])):
                raise CapbenchError(
                    f"the list of {query} {name} ranks {len(ranked)} {kind}s, and {PROTOCOLS[protocol]} needs "
                    f"{needed}; write longer lists"
                )
            place = {each: number for number, each in enumerate(ranked, 1)}
            found.append([place.get(each, FAR) for each in fitting])
        counts = np.array([len(places) for places in found], np.int64)
        of_query = np.repeat(np.arange(len(found)), counts)
        values[way] = measured(Places(counts, of_query, np.concatenate(found).astype(np.int64)))
    return positives_metrics(positives, values, list(positives.images_of))


def positives_metrics(
    positives: Positives, values: Mapping[str, Mapping[str, NDArray[np.float64]]], caption_ids: Sequence[int]
) -> Evaluated:
    """The metrics of both directions and their arrays, from the `measured` values of each.

    `caption_ids` are the captions that are queries, in the order of the values.
    """
    keys = [(way, measure) for way in values for measure in POSITIVES[positives.protocol][1]]
    arrays = {f"{positives.protocol}_{way}_{measure}": values[way][measure] for way, measure in keys}
    metrics = {key: float(array.mean()) for key, array in arrays.items()}
    place = {image: number for number, image in enumerate(positives.images)}
    owners = np.array([place[positives.image_of_caption[caption]] for caption in caption_ids], np.int64)
    return metrics, {**arrays, f"{positives.protocol}_image_of_caption": owners}


def _evaluated(positives: Positives, images: list[int], captions: list[int], ways: ByMatrix) -> Evaluated:
    """`images` and `captions` are the ids of the candidates, in the order of `ways`."""
    queries = [caption for caption in captions if caption in positives.images_of]
    values = {
        "image_to_caption": measured(places_of(positives.captions_of, images, captions, ways, of_images=True)),
        "caption_to_image": measured(places_of(positives.images_of, captions, images, ways, of_images=False)),
    }
    return positives_metrics(positives, values, queries)


def _chosen(positives: Positives, images: list[int], captions: list[int]) -> tuple[dict[int, int], dict[int, int]]:
    """The rows of the candidates among the given ids, each with its id. Raises CapbenchError for missing ones."""
    chosen = []
    for kind, given, wanted in (("image", images, positives.images), ("caption", captions, positives.image_of_caption)):
        if twice := duplicates(given):
            raise CapbenchError(f"{len(twice):,} {kind} ids are given twice: {listed(twice)}; give each row its own")
        there, among = set(given), set(wanted)
        _refuse_missing([name for name in wanted if name not in there], f"{kind}s of COCO's test set are missing")
        chosen.append({row: name for row, name in enumerate(given) if name in among})
    return chosen[0], chosen[1]


def _refuse_missing(missing: Sequence[int], fault: str) -> None:
    if missing:
        raise CapbenchError(
            f"{len(missing):,} {fault}: {listed(missing)}; the protocol needs all of COCO's 5K test set"
        )


def _read(path: Path) -> dict[int, list[int]]:
    """Raises CapbenchError for a file that is no object from ids to lists of ids."""
    try:
        table = {int(key): [int(each) for each in value] for key, value in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CapbenchError(f"{path} holds no positives ({error}); install eccv_caption again") from error
    return {key: list(dict.fromkeys(value)) for key, value in table.items() if value}
