"""Captions with attention, from stored features: batched beams against a loop over images.

The rival is the usual code of a tutorial: one image at a time, its hypotheses as a batch, the annotations copied for
each of them. Of 1,000 images it is timed on 50; `seconds_per_1000` sets both side by side. In the beam search of 64
images no caption ends, so that all take 20 steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from benchmarks.bench import DEVICE, Case, Way, rows
from capbench.captioning import IMAGES_AT_ONCE, LONGEST, caption_images
from capbench.data.vocabulary import END, PAD, START, UNKNOWN
from reproductions.show_attend_tell.model import ShowAttendTell
from reproductions.show_attend_tell.recipe import presets

IMAGES, LOCATIONS, CHANNELS, WORDS = 1000, 49, 1280, 2541
SEARCHED, BEAM, PART = 64, 3, 8


def batched(model: ShowAttendTell, images: Tensor, beam: int) -> list[list[int]]:
    found = [caption_images(model, part, beam).words[:, 0] for part in images.split(IMAGES_AT_ONCE)]
    return [[word for word in row if word != PAD] for row in torch.cat(found).tolist()]


def one_by_one(model: ShowAttendTell, images: Tensor, beam: int) -> list[list[int]]:
    return [one(model, images[i : i + 1], beam) for i in range(len(images))]


def one(model: ShowAttendTell, image: Tensor, beam: int) -> list[int]:
    """The best caption of one image, hypotheses in a list."""
    state = model.start(image)
    live: list[tuple[float, list[int]]] = [(0.0, [START])]
    ended: list[tuple[float, list[int]]] = []
    for _ in range(LONGEST):
        step = model.step(image.expand(len(live), -1, -1))
        log_probs, after = step(torch.tensor([[words[-1]] for _, words in live], device=image.device), state)
        log_probs[..., [PAD, START, UNKNOWN]] = -torch.inf
        total = torch.tensor([score for score, _ in live], device=image.device)[:, None] + log_probs[:, 0]
        scores, places = total.flatten().topk(min(2 * beam, total.numel()))
        found, live, parents = live, [], []
        for rank, (score, place) in enumerate(zip(scores.tolist(), places.tolist(), strict=True)):
            parent, word = divmod(place, total.shape[1])
            words = [*found[parent][1], word]
            if word == END:
                if rank < beam:
                    ended.append((score, words))
            elif len(live) < beam:
                live.append((score, words))
                parents.append(parent)
        if len(ended) >= beam and sorted(ended, reverse=True)[beam - 1][0] >= live[0][0]:
            break
        state = {name: entry[parents] for name, entry in after.items()}
    return max(ended or live)[1][1:]


@pytest.fixture(scope="module")
def model() -> ShowAttendTell:
    return captioner(torch.device("cpu"), torch.float32, 6.0)


@cache
def captioner(device: torch.device, dtype: torch.dtype, end: float) -> ShowAttendTell:
    """The same model on any device in any type. `end` is how much END is preferred."""
    torch.manual_seed(0)
    built = ShowAttendTell(presets("flickr8k")["soft"], WORDS, CHANNELS).eval()
    with torch.no_grad():
        built.L_o.weight.mul_(8)  # sharp enough for captions that differ
        built.L_o.bias[END] += end
    return built.to(device, dtype)


def searched(images: Tensor) -> Tensor:
    return caption_images(captioner(images.device, images.dtype, -1e4), images, BEAM).words[:, 0].double()


def searched_one_by_one(images: Tensor, count: int) -> Tensor:
    found = one_by_one(captioner(images.device, images.dtype, -1e4), images[:count], BEAM)
    return torch.tensor(found, dtype=torch.float64, device=images.device)


def stored_annotations(images: int, dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, ...]:
    return (torch.randn(images, LOCATIONS, CHANNELS, device=device).relu().to(dtype),)


SEARCHES = [
    Case(
        operation="beam search",
        size=f"{SEARCHED} images, beam {BEAM}, {LONGEST} steps",
        numbers={"images": SEARCHED, "beam": BEAM, "steps": LONGEST},
        dtype=torch.float32, flop=0.0, bytes=0.0,
        ways={
            "ours": Way(searched, ours=True),
            f"one image at a time, {PART} of {SEARCHED} multiplied up": Way(
                partial(searched_one_by_one, count=PART), scale=SEARCHED / PART
            ),
        },
        inputs=partial(stored_annotations, SEARCHED, torch.float32, DEVICE),
        small=partial(stored_annotations, 3, torch.float64, "cpu"), reference=partial(searched_one_by_one, count=3),
    )
]  # fmt: skip


@rows(SEARCHES)
def test_beam_search(show, case: Case, way: str) -> None:
    show(case, way)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(IMAGES, LOCATIONS, CHANNELS, generator=torch.Generator().manual_seed(0)).relu()


@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize("way", [batched, one_by_one], ids=["batched", "one by one"])
def test_captions(
    benchmark,
    model: ShowAttendTell,
    images: Tensor,
    way: Callable[[ShowAttendTell, Tensor, int], list[list[int]]],
    beam: int,
) -> None:
    with torch.no_grad():
        assert batched(model, images[:20], beam) == one_by_one(model, images[:20], beam)  # parity before speed
        part = images if way is batched else images[:50]
        benchmark.group = f"captions with attention, beam {beam}"
        benchmark.pedantic(way, (model, part, beam), rounds=2)
    benchmark.extra_info.update(ours=way is batched, scale=len(images) / len(part))
    benchmark.extra_info["variant"] = "batched" if way is batched else "one by one, 50 of 1,000 multiplied up"
    benchmark.extra_info["seconds_per_1000"] = benchmark.stats.stats.min * 1000 / len(part)
