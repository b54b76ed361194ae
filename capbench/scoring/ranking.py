"""Ranks from lists of candidates that may be cut off: what is certain of them, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from capbench.base.errors import CapbenchError, listed
from capbench.data.captions import Split
from capbench.metrics.retrieval import FOLD, Ranks, metrics_of_ranks
from capbench.scoring.ids import UNKNOWN, Side
from capbench.scoring.joining import Given, Scope, retrieval_scope
from capbench.scoring.outputs import Ranking

DIRECTIONS = ("image_to_caption", "caption_to_image")


@dataclass(frozen=True, eq=False)
class Ranked:
    """What ranked lists say."""

    metrics: dict[str, float]  # those that are certain
    ranks: Ranks  # a match outside its list has the last rank of all
    directions: tuple[str, ...]  # that the lists have, of DIRECTIONS
    depth: int  # the shortest list
    scope: Scope
    notes: tuple[str, ...]  # why a metric is missing


@dataclass(frozen=True, eq=False)
class Lists:
    """The lists of one direction, joined with a split: an entry a line."""

    queries: Int[np.ndarray, " line"]
    candidates: Int[np.ndarray, " line"]
    scores: Float[np.ndarray, " line"]


def evaluate_ranking(outputs: Ranking, split: Split, protocol: str) -> Ranked:
    """The metrics that ranked lists decide, under a protocol.

    The rank of a match counts the wrong candidates of its list that score at least as high. A match outside the list
    comes after all in it, and nothing more is known: a metric is kept if it is the same wherever the match is.
    Raises CapbenchError for ids that are unknown, queries without a list, and candidates that a list has twice.
    """
    found = _directions(outputs, split)
    scope = _scope(split, protocol, found, outputs.source)
    images = FOLD if protocol == "1K" else len(scope.split.image_index)
    kept = scope.kept[scope.image_of_caption < images]
    image_of_caption = split.image_of_caption[kept]
    bounds: list[dict[str, torch.Tensor]] = [{}, {}]
    depths = []
    for direction in DIRECTIONS:
        count = images if direction == DIRECTIONS[0] else len(kept)
        low, high = np.zeros(count, np.int64), np.zeros(count, np.int64)
        if direction in found:
            lists = _within(found[direction], direction, images, kept)
            _check_queries(lists, direction, count, scope, outputs.source)
            low, high, depth = _bounds(lists, direction, image_of_caption, images, protocol)
            depths.append(depth)
        for side, values in zip(bounds, (low, high), strict=True):
            side[direction] = torch.from_numpy(values)
    best, worst = (Ranks(**side) for side in bounds)
    of_caption = torch.from_numpy(image_of_caption)
    metrics, others = (metrics_of_ranks(ranks, of_caption, protocol) for ranks in (best, worst))
    given = {name for name in metrics if name.startswith(tuple(found)) or len(found) == len(DIRECTIONS)}
    certain = {name: value for name, value in metrics.items() if name in given and others[name] == value}
    notes = tuple(_why(name, found, min(depths)) for name in metrics if name not in certain)
    return Ranked(certain, worst, tuple(found), min(depths), scope, notes)


def ranked_ids(
    outputs: Ranking, split: Split, positives: Mapping[str, Mapping[int, Sequence[int]]]
) -> tuple[Scope, tuple[dict[int, list[int]], ...]]:
    """The ids of each list's candidates by the id of its query, for each of DIRECTIONS, the closest first.

    Among equal scores the `positives` of the query come last. Raises CapbenchError for ids that are unknown.
    """
    found = _directions(outputs, split)
    sides = Side("image", split), Side("caption", split)
    ranked: list[dict[int, list[int]]] = []
    for direction, (asking, asked) in zip(DIRECTIONS, (sides, sides[::-1]), strict=True):
        scored: dict[int, list[tuple[float, bool, int]]] = {}
        if direction in found:
            fitting = {query: set(ids) for query, ids in positives[direction].items()}
            for query, candidate, score in zip(*_columns(found[direction]), strict=True):
                name, other = asking.ids[query], asked.ids[candidate]
                scored.setdefault(name, []).append((-score, other in fitting.get(name, ()), other))
        ranked.append({name: [other for *_, other in sorted(lines)] for name, lines in scored.items()})
    return _scope(split, "whole", found, outputs.source), tuple(ranked)


def _directions(outputs: Ranking, split: Split) -> dict[str, Lists]:
    """The lists by direction: a query is an image and its candidates captions, or the other way round."""
    sides = Side("image", split), Side("caption", split)
    codes, names = zip(*(_coded(column) for column in (outputs.queries, outputs.candidates)), strict=True)
    found: dict[str, Lists] = {}
    places = [[side.places(each.tolist()) for side in sides] for each in names]
    whole = [_all_known(places[0][image], places[1][1 - image]) for image in (0, 1)]
    if whole[0] and whole[1]:  # the numbers may be of either: only one of the two has a list for each
        complete = [len(np.unique(places[0][side])) == len(sides[side].ids) for side in (0, 1)]
        whole = complete if complete[0] != complete[1] else whole
    if whole[0] and whole[1]:
        raise CapbenchError(f"{outputs.source}: its queries may be images or captions; name images by their files")
    for number, direction in enumerate(DIRECTIONS):
        queries, candidates = places[0][number][codes[0]], places[1][1 - number][codes[1]]
        lines = np.full(len(queries), True) if whole[number] else (queries >= 0) & (candidates >= 0)
        if lines.any() and not whole[1 - number]:
            named = np.unique(codes[number][lines])  # queries are images, or candidates are
            sides[0].refuse_ambiguous(outputs.source, names[number][named])
            found[direction] = Lists(queries[lines], candidates[lines], outputs.scores[lines])
    known = sum(len(lists.queries) for lists in found.values())
    if known != len(outputs.queries):
        _refuse_unknown(outputs, [(places[side][0] < 0) & (places[side][1] < 0) for side in (0, 1)], names, split)
    return found


def _coded(column: np.ndarray) -> tuple[Int[np.ndarray, " line"], np.ndarray]:
    """Each text as a number, and the distinct texts."""
    import pandas as pd

    codes, names = pd.factorize(column)
    return codes, np.asarray(names, object)


def _all_known(queries: Int[np.ndarray, " query"], candidates: Int[np.ndarray, " candidate"]) -> bool:
    return bool((queries != UNKNOWN).all() and (candidates != UNKNOWN).all())


def _refuse_unknown(outputs: Ranking, strange: list[np.ndarray], names: tuple[np.ndarray, ...], split: Split) -> None:
    ids = [name for side, texts in zip(strange, names, strict=True) for name in texts[side]]
    fault = f"{len(ids):,} unknown ({listed(ids)})" if ids else "some that are image and caption both"
    what = f"the {split.name} split of {split.dataset.name}"
    raise CapbenchError(f"{outputs.source} should rank the captions and images of {what}; of its ids, {fault}")


def _scope(split: Split, protocol: str, found: Mapping[str, Lists], source: str) -> Scope:
    """What the lists are of: queries decide, for a list that is cut off need not have every candidate."""
    images, captions = Side("image", split), Side("caption", split)
    seen: list[set[int]] = [set(), set()]
    for direction, lists in found.items():
        pair = (lists.queries, lists.candidates)
        for side, places in zip(seen, pair if direction == DIRECTIONS[0] else pair[::-1], strict=True):
            side.update(np.unique(places).tolist())
    given = (
        Given(len(places), tuple(side.ids[place] for place in sorted(places)), source)
        for places, side in zip(seen, (images, captions), strict=True)
    )
    return retrieval_scope(split, protocol, *given)


def _within(lists: Lists, direction: str, images: int, kept: Int[np.ndarray, " caption"]) -> Lists:
    """The lines between the images and captions that are scored, which get their numbers among these."""
    pair = [lists.queries, lists.candidates]
    image, caption = (0, 1) if direction == DIRECTIONS[0] else (1, 0)
    lines = (pair[image] < images) & np.isin(pair[caption], kept)
    pair[caption] = np.searchsorted(kept, pair[caption])
    return Lists(pair[0][lines], pair[1][lines], lists.scores[lines])


def _check_queries(lists: Lists, direction: str, count: int, scope: Scope, source: str) -> None:
    side = scope.images if direction == DIRECTIONS[0] else scope.captions
    numbers = np.arange(count) if direction == DIRECTIONS[0] else scope.kept
    if not len(lists.queries):
        raise CapbenchError(
            f"{source}: none of the {count:,} {side.noun}s that are scored has a list; give one for each"
        )
    pairs = np.sort(lists.queries * (lists.candidates.max() + 1) + lists.candidates)
    if (twice := pairs[1:] == pairs[:-1]).any():
        query = int(pairs[1:][twice][0] // (lists.candidates.max() + 1))
        raise CapbenchError(f"{source}: the list of {side.noun} {side.ids[numbers[query]]} has a candidate twice")
    if len(missing := np.setdiff1d(np.arange(count), lists.queries)):
        ids = [side.ids[numbers[query]] for query in missing.tolist()]
        raise CapbenchError(f"{source}: {len(ids):,} {side.noun}s have no list ({listed(ids)}); give one for each")


def _bounds(
    lists: Lists, direction: str, image_of_caption: Int[np.ndarray, " caption"], images: int, protocol: str
) -> tuple[Int[np.ndarray, " query"], Int[np.ndarray, " query"], int]:
    """The lowest and the highest rank that each query's match may have, and the length of the shortest list."""
    to_caption = direction == DIRECTIONS[0]
    image = lists.queries if to_caption else lists.candidates
    caption = lists.candidates if to_caption else lists.queries
    count = images if to_caption else len(image_of_caption)
    if protocol == "5-fold 1K":  # candidates of another fold do not count
        same = image // FOLD == image_of_caption[caption] // FOLD
        lists, image, caption = Lists(*(each[same] for each in _columns(lists))), image[same], caption[same]
    own: Bool[np.ndarray, " line"] = image_of_caption[caption] == image
    best = np.full(count, -np.inf)
    np.maximum.at(best, lists.queries[own], lists.scores[own])
    wrong = lists.queries[~own]
    rank = np.bincount(wrong[lists.scores[~own] >= best[wrong]], minlength=count)
    in_list = np.bincount(lists.queries[own], minlength=count) > 0
    fold = np.arange(images) // FOLD if protocol == "5-fold 1K" else np.zeros(images, np.int64)
    members = np.bincount(fold) if not to_caption else np.bincount(fold[image_of_caption])
    of_query = fold if to_caption else fold[image_of_caption]
    matches = np.bincount(image_of_caption, minlength=images) if to_caption else np.ones(count, np.int64)
    last = members[of_query] - matches  # after every wrong candidate
    length = np.bincount(lists.queries, minlength=count)
    lowest = np.full(count, np.inf)
    np.minimum.at(lowest, lists.queries, lists.scores)
    at_end = np.bincount(lists.queries[lists.scores == lowest[lists.queries]], minlength=count)
    tied = (length < members[of_query]) & (best == lowest) & (at_end > 1)  # beyond the list there may be more of them
    return rank, np.where(in_list & ~tied, rank, last), int(length.min())


def _columns(lists: Lists) -> tuple[np.ndarray, ...]:
    return lists.queries, lists.candidates, lists.scores


def _why(name: str, found: Mapping[str, Lists], depth: int) -> str:
    missing = [direction for direction in DIRECTIONS if direction not in found]
    if missing and (name == "rsum" or name.startswith(missing[0])):
        return f"{name}: the file has no lists {missing[0].replace('_', ' ')}"
    why = "a match lies outside its list, or ties with others at the list's end"
    return f"{name}: not certain, for {why}, and the shortest list ends at {depth}"
