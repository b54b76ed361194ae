"""Outputs of any system, scored under a protocol: the metrics and arrays that a run's record has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError, unknown
from capbench.data.captions import CaptionDataset, Split
from capbench.data.tokenizers import KARPATHY
from capbench.metrics import positives, retrieval
from capbench.metrics.captioning import CaptionScorer
from capbench.metrics.diversity import distinct_n, novelty, vocabulary_used
from capbench.metrics.positives import Evaluated
from capbench.metrics.retrieval import Ranks
from capbench.scoring import joining, signature
from capbench.scoring.joining import Given, Scope
from capbench.scoring.outputs import Captions, Embeddings, Outputs, Ranking, Similarity, Table
from capbench.scoring.ranking import DIRECTIONS, evaluate_ranking, ranked_ids
from capbench.scoring.words import encoded
from capbench.training.experiment import Evaluation

_UNIT = 1e-3  # how far from 1 the length of a normalised vector may be, as in `capbench.metrics.retrieval`


def score(
    outputs: Outputs, split: Split, protocol: str = "whole", *, similarity: str = "cosine", rule: str = "coco-caption"
) -> Evaluation:
    """The metrics of outputs, their arrays, and notes on how they were joined, with a signature.

    Outputs are joined with the split by id. `protocol` is one of `capbench.metrics.retrieval.PROTOCOLS` or, for COCO's
    5,000 test images, of `capbench.metrics.positives.PROTOCOLS`; `similarity` is that of embeddings: "cosine", "dot" or
    "order"; `rule`, one of `capbench.scoring.signature.RULES`, is named in the signature and decides no metric.
    Raises CapbenchError for ids that are missing, unknown or given twice, numbers that fit no protocol, and vectors
    under the cosine whose length is not 1.
    """
    if rule not in signature.RULES:
        raise unknown("rule", rule, signature.RULES)
    if protocol in positives.PROTOCOLS:
        positives.load_positives(protocol)  # refused before any work
    if isinstance(outputs, Captions):
        scored, captions = joining.captions_in_order(split, protocol, outputs)
        evaluation, words = score_captions(captions, scored), encoded(captions)
        line, notes = signature.of_captions(scored, protocol, rule, evaluation.notes), evaluation.notes
        return Evaluation(evaluation.metrics, {**words, **evaluation.arrays}, (signature.noted(line), *notes))
    if isinstance(outputs, Embeddings):
        return _of_embeddings(outputs, split, protocol, similarity)
    if isinstance(outputs, Similarity):
        return _of_similarity(outputs, split, protocol)
    return _of_ranking(outputs, split, protocol)


def score_captions(captions: list[str], split: Split) -> Evaluation:
    """All metrics of one caption for each image of a split, in its order, and how new and varied they are."""
    scores, tokenizer = _scorer(split).score(captions), split.dataset.tokenizer
    new = novelties({"novelty": captions}, split.dataset)
    metrics = {
        **scores.metrics,
        **new.metrics,
        "distinct2": distinct_n(captions, 2, tokenizer),
        "vocabulary_used": float(vocabulary_used(captions, tokenizer)),
    }
    statistics = {f"{name}_statistics": values for name, values in scores.statistics.items()}
    return Evaluation(metrics, {**scores.per_image, **statistics}, (*scores.notes, *new.notes))


def novelties(captions: Mapping[str, Sequence[str]], dataset: CaptionDataset) -> Evaluation:
    """The novelty of several lists of captions beside the training captions, by name; a note where there are none."""
    if "train" not in dataset.splits:
        note = f"novelty: {dataset.name} has no training caption that a caption could repeat"
        return Evaluation({}, {}, (note,))
    train = dataset.split("train")
    # the tokens of a split file need not be those of its raw captions
    known = train.captions if dataset.tokenizer == KARPATHY else [" ".join(words) for words in train.tokens]
    return Evaluation({name: novelty(each, known, dataset.tokenizer) for name, each in captions.items()}, {})


def scored_captions(scope: Scope, ranks: Ranks) -> Int[np.ndarray, " caption"]:
    """The image of each ranked caption: under the protocol "1K" those of the first 1,000 images are ranked."""
    return scope.image_of_caption[scope.image_of_caption < len(ranks.image_to_caption)]


def _of_embeddings(outputs: Embeddings, split: Split, protocol: str, similarity: str) -> Evaluation:
    tables = outputs.images, outputs.captions
    given = tuple(Given(len(table.rows), table.ids, table.source) for table in tables)
    scope = joining.retrieval_scope(split, _scope_of(protocol), *given)
    if similarity == "cosine":
        for table in tables:
            _refuse_other_lengths(table)
    rows, of_images = joining.image_rows(scope, given[0], outputs.images.rows)
    columns, of_captions = joining.caption_rows(scope, given[1])
    images, captions = joining.in_order(rows, tables[0].rows), joining.in_order(columns, tables[1].rows)
    if images.dtype != captions.dtype:
        images, captions = images.double(), captions.double()
    how, notes = {"similarity": similarity}, (*of_images, *of_captions)
    if protocol in positives.PROTOCOLS:
        found = positives.evaluate_positives(images, captions, *_ids(scope), protocol, similarity)  # type: ignore[arg-type]
        return _with_positives(scope, protocol, how, found, notes)
    image_of_caption = torch.from_numpy(scope.image_of_caption)
    metrics, ranks = retrieval.evaluate_protocol(images, captions, image_of_caption, protocol, similarity)  # type: ignore[arg-type]
    return _ranked(scope, protocol, how, metrics, ranks, notes)


def _of_similarity(outputs: Similarity, split: Split, protocol: str) -> Evaluation:
    sides = zip(outputs.matrix.shape, (outputs.image_ids, outputs.caption_ids), strict=True)
    given = [Given(count, ids, outputs.source) for count, ids in sides]
    scope = joining.retrieval_scope(split, _scope_of(protocol), *given)
    rows, of_images = joining.image_rows(scope, given[0], outputs.matrix)
    columns, of_captions = joining.caption_rows(scope, given[1])
    matrix = joining.in_order(columns, joining.in_order(rows, outputs.matrix).T).T
    how, notes = {"similarity": "matrix"}, tuple(dict.fromkeys((*of_images, *of_captions)))
    if protocol in positives.PROTOCOLS:
        found = positives.matrix_positives(matrix, *_ids(scope), protocol)
        return _with_positives(scope, protocol, how, found, notes)
    metrics, ranks = retrieval.evaluate_similarity(matrix, torch.from_numpy(scope.image_of_caption), protocol)
    return _ranked(scope, protocol, how, metrics, ranks, notes)


def _of_ranking(outputs: Ranking, split: Split, protocol: str) -> Evaluation:
    if protocol in positives.PROTOCOLS:
        known = positives.load_positives(protocol)
        scope, lists = ranked_ids(
            outputs, split, dict(zip(DIRECTIONS, (known.captions_of, known.images_of), strict=True))
        )
        return _with_positives(scope, protocol, {}, positives.list_positives(lists[0], lists[1], protocol), ())
    ranked = evaluate_ranking(outputs, split, protocol)
    how = {"depth": f"{ranked.depth}"}
    return _ranked(ranked.scope, protocol, how, ranked.metrics, ranked.ranks, ranked.notes, ranked.directions)


def _scope_of(protocol: str) -> str:
    """The protocol that says which images and captions outputs may be of."""
    return "whole" if protocol in positives.PROTOCOLS else protocol


def _ids(scope: Scope) -> tuple[Int[np.ndarray, " image"], Int[np.ndarray, " caption"]]:
    """The ids of the images and the captions of a scope, in its order."""
    images = np.array(scope.images.ids[: len(scope.split.image_index)], np.int64)
    return images, np.array(scope.captions.ids, np.int64)[scope.kept]


def _with_positives(
    scope: Scope, protocol: str, how: dict[str, str], found: Evaluated, notes: tuple[str, ...]
) -> Evaluation:
    metrics, arrays = found
    line = signature.of_retrieval(scope.split, scope.image_of_caption, protocol, how)
    return Evaluation(metrics, arrays, (signature.noted(line), *scope.notes, *notes))


def _ranked(
    scope: Scope, protocol: str, how: dict[str, str], metrics: dict[str, float], ranks: Ranks,
    notes: tuple[str, ...], directions: tuple[str, ...] = DIRECTIONS,
) -> Evaluation:  # fmt: skip
    scored = scope.split.first(len(ranks.image_to_caption))
    image_of_caption = scored_captions(scope, ranks)
    arrays = {direction: getattr(ranks, direction).numpy() for direction in directions}
    line = signature.of_retrieval(scored, image_of_caption, protocol, how)
    said = (signature.noted(line), *scope.notes, *notes)
    return Evaluation(metrics, arrays | {"image_of_caption": image_of_caption}, said)


def _refuse_other_lengths(table: Table) -> None:
    """Raises CapbenchError naming the first vector whose length is not 1 up to rounding."""
    lengths: Float[Tensor, " row"] = torch.linalg.vector_norm(table.rows, dim=1)
    wrong = ((lengths - 1).abs() > _UNIT).nonzero()
    if len(wrong):
        row = int(wrong[0])
        whose = "" if table.ids is None else f" (id {table.ids[row]})"
        raise CapbenchError(
            f"{table.source}, row {row}{whose}: the vector has length {float(lengths[row]):.4g}, and the cosine is of "
            "vectors of length 1; normalise them, or score them with --similarity dot"
        )


_scorers: dict[tuple[str, str, int], CaptionScorer] = {}  # by data set, split and images


def _scorer(split: Split) -> CaptionScorer:
    """The scorer of a split's references, which are tokenised once."""
    key = split.dataset.fingerprint, split.name, len(split.image_index)
    if key not in _scorers:
        _scorers[key] = CaptionScorer.of(split)
    return _scorers[key]
