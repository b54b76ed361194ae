"""Ranks of embeddings are those of one exact score: against loops over exact sums, on every path, and where rows tie.

The oracle scores each pair of distinct rows with math.fsum, which rounds once.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from capbench.base.processor import computes_bf16
from capbench.kernels._triton import interpreted
from capbench.kernels.ranks import cpu, embedding_ranks, exact, ranks_of
from capbench.kernels.ranks.exact import Contest, exact_scores

DEVICE = "cpu" if interpreted() else "cuda"
CASES = 1000
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # of the bytes of a number


@dataclass(frozen=True)
class Case:
    """Embeddings as rows of few distinct ones: `image` and `caption` say which row of the distinct ones each is."""

    distinct_images: Tensor
    distinct_captions: Tensor
    image: Tensor
    caption: Tensor
    image_of_caption: Tensor
    order: bool

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, bool]:
        return self.distinct_images[self.image], self.distinct_captions[self.caption], self.image_of_caption, self.order

    def expected(self) -> tuple[list[int], list[int]]:
        """The definition of the ranks, over one score for each pair of distinct rows."""
        v, c = self.distinct_images.double().tolist(), self.distinct_captions.double().tolist()
        score = [[fsum_score(row, column, self.order) for column in c] for row in v]
        image, caption, image_of_caption = self.image.tolist(), self.caption.tolist(), self.image_of_caption.tolist()
        matched = [score[image[own]][caption[k]] for k, own in enumerate(image_of_caption)]
        by_image = []
        for i, row in enumerate(image):
            best = max(m for m, own in zip(matched, image_of_caption, strict=True) if own == i)
            by_image.append(sum(score[row][caption[k]] >= best for k, own in enumerate(image_of_caption) if own != i))
        by_caption = [
            sum(score[row][caption[k]] >= matched[k] for i, row in enumerate(image) if i != own)
            for k, own in enumerate(image_of_caption)
        ]
        return by_image, by_caption

    def check_alike(self, by_caption: list[int]) -> None:
        """Equal captions of equal images have one rank."""
        rank: dict[tuple[int, int], int] = {}
        for k, own in enumerate(self.image_of_caption.tolist()):
            alike = int(self.caption[k]), int(self.image[own])
            assert rank.setdefault(alike, by_caption[k]) == by_caption[k]


def fsum_score(v: list[float], c: list[float], order: bool) -> float:
    if order:
        return -math.fsum(max(0.0, b - a) ** 2 for a, b in zip(v, c, strict=True))
    return math.fsum(a * b for a, b in zip(v, c, strict=True))


def nudged(row: Tensor, some: random.Random) -> Tensor:
    """The row with one coordinate moved a little: to the next number of its type, or in float64 as little as float32.

    A score is then nearly the same, but by more than float64 rounds.
    """
    row = row.clone()
    step = some.choice([-1, 1]) * (2**29 if row.dtype is torch.float64 else 1)
    row.view(INTEGER[row.element_size()])[some.randrange(len(row))] += step
    return row


def drawn(seed: int, most_images: int, most_dim: int, dtypes: list[torch.dtype]) -> Case:
    """Rows of normal or whole numbers, some of them nearly equal, each used once or several times at random places."""
    some, normal = random.Random(seed), torch.Generator().manual_seed(seed)
    images, dim, dtype = some.randint(1, most_images), some.randint(1, most_dim), some.choice(dtypes)
    captions, whole = images + some.randint(0, 2 * images), some.random() < 0.2
    # Beyond and below what float32 can multiply: half precision cannot hold such numbers.
    scale = 1.0 if whole or dtype.itemsize == 2 else some.choice([1.0, 1.0, 1.0, 1e-3, 1e25, 1e-30])

    def rows(most: int) -> Tensor:
        shape = some.randint(1, most), dim
        if whole:
            return torch.randint(-2, 3, shape, generator=normal).to(dtype)
        actual = list((scale * normalize(torch.randn(shape, generator=normal), dim=1)).to(dtype))
        return torch.stack([*actual, *(nudged(some.choice(actual), some) for _ in range(some.randint(0, 3)))])

    v, c = rows(images), rows(captions)
    image_of_caption = torch.tensor([*range(images), *(some.randrange(images) for _ in range(captions - images))])
    return Case(
        v, c, torch.randint(len(v), (images,), generator=normal), torch.randint(len(c), (captions,), generator=normal),
        image_of_caption[torch.randperm(captions, generator=normal)], some.random() < 0.4,
    )  # fmt: skip


def near_ties(dim: int, order: bool) -> Case:
    """Unit embeddings; each image and each caption has some neighbours that float32 cannot tell from it by a score."""
    some, normal = random.Random(dim), torch.Generator().manual_seed(dim)
    v = list(normalize(torch.randn(6, dim, generator=normal), dim=1))
    c = [normalize(row + 0.5 * torch.randn(dim, generator=normal) / dim**0.5, dim=0) for row in v for _ in range(2)]
    v += [nudged(row, some) for row in v for _ in range(2)]
    c += [nudged(row, some) for row in c]
    image, caption = torch.randperm(len(v), generator=normal), torch.arange(2 * len(c)) % len(c)
    image_of_caption = torch.cat(
        [torch.arange(len(v)), torch.randint(len(v), (len(caption) - len(v),), generator=normal)]
    )
    return Case(torch.stack(v), torch.stack(c), image, caption, image_of_caption, order)


def as_lists(counted: tuple[Tensor, Tensor]) -> tuple[list[int], list[int]]:
    return counted[0].tolist(), counted[1].tolist()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def path(monkeypatch: pytest.MonkeyPatch, some: random.Random) -> None:
    """How a tile is cut, when open pairs are settled and what counts as crowded: none of it may change a rank."""
    for name, values in (("CPU_STRIP", (40, 2**18)), ("OPEN", (0, 2**15)), ("CROWDED", (1, 16, 10**6))):
        monkeypatch.setattr(cpu, name, some.choice(values))
    monkeypatch.setattr(exact, "CPU_ELEMENTS", some.choice([100, 2**16]))


def test_ranks_are_those_of_exact_scores_in_any_tiles_by_any_threads(monkeypatch, threads):
    dtypes = [torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]
    for seed in range(CASES):
        some, case = random.Random(-seed), drawn(seed, most_images=9, most_dim=30, dtypes=dtypes)
        path(monkeypatch, some)
        threads(some.choice([1, 2]))
        actual = as_lists(embedding_ranks(*case.inputs(), at_once=some.choice([None, 1, 3, 5, 9])))
        assert actual == case.expected(), seed
        case.check_alike(actual[1])


@pytest.mark.kernel
def test_kernel_ranks_are_those_of_exact_scores_in_any_tiles(monkeypatch):
    """On a GPU, too, the fallback tile by tile is chosen in some cases, where the list has no room."""
    from capbench.kernels.ranks import triton as ranks_triton

    for seed in range(CASES):
        some = random.Random(-seed)
        case = drawn(seed, most_images=6, most_dim=20, dtypes=[torch.float32, torch.bfloat16, torch.float16])
        monkeypatch.setattr(ranks_triton, "LISTED", some.choice([2, 2**22, 2**22]))
        block = some.choice([16, 32, 64])

        def shaped(embeddings: Tensor, order: bool, precision: str, block: int = block) -> dict[str, Any]:
            precision = "ieee" if order else "widened" if interpreted() else precision
            return {"order": order, "precision": precision, "block": block, "depth": 16, "num_warps": 4}

        monkeypatch.setattr(ranks_triton, "tile_of", shaped)
        v, c, image_of_caption, order = case.inputs()
        actual = as_lists(embedding_ranks(v.to(DEVICE), c.to(DEVICE), image_of_caption, order))
        assert actual == case.expected(), seed
        case.check_alike(actual[1])


@pytest.mark.kernel
@pytest.mark.parametrize("order", [False, True])
def test_kernel_ranks_of_shares_add_up(order):
    v, c, image_of_caption = torch.randn(40, 16), torch.randn(90, 16), torch.arange(90) % 40
    v[30:], c[:5] = v[3], c[20]  # ties within and between the shares
    contest = Contest.of(v.to(DEVICE), c.to(DEVICE), image_of_caption.to(DEVICE), order)
    parts = [ranks_of(contest.share(rows)) for rows in (slice(0, 13), slice(13, 40))]
    by_image, by_caption = ranks_of(contest)
    assert torch.cat([part[0] for part in parts]).tolist() == by_image.tolist()
    assert (parts[0][1] + parts[1][1]).tolist() == by_caption.tolist()


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("dim", [300, 1024])
def test_near_ties_are_told_apart_in_any_tiles_by_any_threads(dim, order, threads):
    case = near_ties(dim, order)
    expected = case.expected()
    for count, at_once in ((1, None), (1, 1), (1, 7), (2, None)):
        threads(count)
        assert as_lists(embedding_ranks(*case.inputs(), at_once=at_once)) == expected
    v, c, image_of_caption, _ = case.inputs()
    assert as_lists(embedding_ranks(v.double(), c.double(), image_of_caption, order)) == expected


@pytest.mark.kernel
@pytest.mark.parametrize(("order", "wide_from"), [(False, 1), (False, 2048), (True, 2048)])
@pytest.mark.parametrize("dim", [300, 1024])
def test_kernel_tells_near_ties_apart(dim, order, wide_from, monkeypatch):
    monkeypatch.setattr("capbench.kernels.ranking_loss.triton.WIDE_FROM", wide_from)
    case = near_ties(dim, order)
    v, c, image_of_caption, _ = case.inputs()
    assert as_lists(embedding_ranks(v.to(DEVICE), c.to(DEVICE), image_of_caption, order)) == case.expected()


@pytest.mark.kernel
@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("room", [1, 2**22])
def test_kernel_without_room_for_open_pairs_leaves_the_ranks_to_tiles(order, room, monkeypatch):
    from capbench.kernels.ranks import triton as ranks_triton

    monkeypatch.setattr(ranks_triton, "LISTED", room)
    case = near_ties(40, order)
    v, c, image_of_caption, _ = case.inputs()
    v, c, image_of_caption = v.to(DEVICE), c.to(DEVICE), image_of_caption.to(DEVICE)
    counted = ranks_triton.counted(exact.Contest.of(v, c, image_of_caption, order))
    assert (counted is None) == (room == 1)
    assert as_lists(embedding_ranks(v, c, image_of_caption, order)) == case.expected()


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize(("at_once", "count"), [(None, 1), (5, 1), (9, 1), (None, 2)])
def test_a_constant_model_ties_everywhere(at_once, count, order, threads):
    """Not whole numbers: products of matrices differ in the last bit between places, on some processors."""
    image, caption = normalize(torch.randn(2, 300, generator=torch.Generator().manual_seed(0)), dim=1)
    image_of_caption = torch.arange(70).repeat_interleave(2)
    threads(count)
    actual = embedding_ranks(image.expand(70, -1), caption.expand(140, -1), image_of_caption, order, at_once)
    assert as_lists(actual) == ([138] * 70, [69] * 140)


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("spread", [1e-3, 1e-6, 1e-8])
def test_a_nearly_collapsed_model_is_ranked_by_what_is_left(spread, order):
    """Where all scores are nearly equal float32 decides nothing; rows that the spread leaves equal tie."""
    normal = torch.Generator().manual_seed(3)
    center = normalize(torch.randn(64, generator=normal), dim=0)
    v, c = (normalize(center + spread * torch.randn(n, 64, generator=normal), dim=1) for n in (30, 60))
    image_of_caption = torch.arange(30).repeat_interleave(2)
    case = Case(v, c, torch.arange(30), torch.arange(60), image_of_caption, order)
    assert as_lists(embedding_ranks(v, c, image_of_caption, order, at_once=11)) == case.expected()


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 7, 64, 300])
def test_exact_scores_have_the_bits_of_a_loop_beside_any_others(dim, order, monkeypatch, threads):
    """A loop over Python's floats adds as every processor does."""
    normal = torch.Generator().manual_seed(dim)
    v, c = torch.randn(20, dim, generator=normal), torch.randn(50, dim, generator=normal)
    rows, columns = torch.randint(20, (300,), generator=normal), torch.randint(50, (300,), generator=normal)
    expected = [added_in_halves(v[r].tolist(), c[k].tolist(), order) for r, k in zip(rows, columns, strict=True)]
    assert exact_scores(v, c, rows, columns, order).tolist() == expected
    threads(2)
    monkeypatch.setattr(exact, "CPU_ELEMENTS", 5 * dim)
    assert exact_scores(v, c, rows, columns, order).tolist() == expected
    alone = [exact_scores(v, c, rows[i : i + 1], columns[i : i + 1], order) for i in range(300)]
    assert torch.cat(alone).tolist() == expected


def added_in_halves(v: list[float], c: list[float], order: bool) -> float:
    above = [max(0.0, b - a) for a, b in zip(v, c, strict=True)]
    terms = [a * a for a in above] if order else [a * b for a, b in zip(v, c, strict=True)]
    while len(terms) > 1:
        width = len(terms) - len(terms) // 2
        terms = [a + b for a, b in zip_longest(terms[:width], terms[width:], fillvalue=0.0)]
    return -terms[0] if order else terms[0]


@pytest.mark.skipif(not computes_bf16(torch.device("cpu")), reason="this processor has no products in bf16")
def test_products_of_float32_in_bf16_are_not_believed():
    """A process may allow them (torch.set_float32_matmul_precision); ranks stay those of exact scores."""
    before = torch.get_float32_matmul_precision()
    case = near_ties(300, order=False)
    try:
        torch.set_float32_matmul_precision("medium")
        assert as_lists(embedding_ranks(*case.inputs())) == case.expected()
    finally:
        torch.set_float32_matmul_precision(before)
