"""Captions with attention, from stored features: batched beams against a loop over images, and against plain torch.

The loop is the usual tutorial code: one image at a time, its hypotheses as a batch, the annotations copied for each; it
is timed on some of the images. In the beam search of 64 images no caption ends, so all take 20 steps, and plain torch
searches all images in one batch; in the other cases captions end as usual. All variants share one model: only the
search differs.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.bench import DEVICE, Case, Variant, rows
from capbench.captioners.decoding import State
from capbench.captioners.experiment import IMAGES_AT_ONCE, LONGEST, caption_images
from capbench.data.vocabulary import END, PAD, START, UNKNOWN
from reproductions.show_attend_tell.model import ShowAttendTell
from reproductions.show_attend_tell.recipe import presets

LOCATIONS, CHANNELS, WORDS, CHECKED = 49, 1280, 2541, 8
NEVER, SOON = -1e4, 6.0  # added to the score of END


@cache
def captioner(device: torch.device, dtype: torch.dtype, end: float) -> ShowAttendTell:
    """One model, with the same weights on any device in any type."""
    torch.manual_seed(0)
    built = ShowAttendTell(presets("flickr8k")["soft-ours"], WORDS, CHANNELS).eval()
    with torch.no_grad():
        built.L_o.weight.mul_(8)  # sharp enough that captions differ
        built.L_o.bias[END] += end
    return built.to(device, dtype)


def batched(images: Tensor, beam: int, end: float) -> Tensor:
    """The best caption of each image, [image, word], padded."""
    model = captioner(images.device, images.dtype, end)
    found = [caption_images(model, part, beam).words[:, 0] for part in images.split(IMAGES_AT_ONCE)]
    return torch.cat([pad(words, (0, LONGEST - words.shape[1]), value=PAD) for words in found]).double()


def one_by_one(images: Tensor, count: int, beam: int, end: float) -> Tensor:
    """The same for the first `count` images."""
    model = captioner(images.device, images.dtype, end)
    found = [caption_of(model, images[i : i + 1], beam) for i in range(min(count, len(images)))]
    padded = [words + [PAD] * (LONGEST - len(words)) for words in found]
    return torch.tensor(padded, dtype=torch.float64, device=images.device)


def caption_of(model: ShowAttendTell, image: Tensor, beam: int) -> list[int]:
    """The best caption of one image; the hypotheses are a list."""
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


def all_at_once(images: Tensor, beam: int) -> Tensor:
    """The best caption of each image if none ends; the annotations are copied for each hypothesis."""
    model, count = captioner(images.device, images.dtype, NEVER), len(images)
    step = model.step(images.repeat_interleave(beam, 0))
    state: State = {name: entry.repeat_interleave(beam, 0) for name, entry in model.start(images).items()}
    never = torch.zeros(WORDS, device=images.device)
    never[[PAD, START, UNKNOWN]] = -torch.inf
    total = torch.full((count, beam), -torch.inf, device=images.device)
    total[:, 0] = 0.0  # the beam begins with one hypothesis
    first = torch.arange(0, count * beam, beam, device=images.device)[:, None]
    written = torch.full((count * beam, 1), START, device=images.device)
    for _ in range(LONGEST):
        log_probs, state = step(written[:, -1:], state)
        extended = total[:, :, None] + (log_probs + never).view(count, beam, WORDS)
        total, places = extended.flatten(1).topk(beam)
        parents = (first + places // WORDS).flatten()
        written = torch.cat([written.index_select(0, parents), (places % WORDS).view(-1, 1)], 1)
        state = {name: entry.index_select(0, parents) for name, entry in state.items()}
    return written.view(count, beam, -1)[:, 0, 1:].double()


def stored_annotations(images: int, dtype: torch.dtype, device: torch.device | str) -> tuple[Tensor, ...]:
    return (torch.randn(images, LOCATIONS, CHANNELS, device=device).relu().to(dtype),)


def case(operation: str, size: str, images: int, part: int, beam: int, end: float) -> Case:
    baseline = f"one image at a time, {part} of {images:,} multiplied up"
    loop = partial(one_by_one, count=part, beam=beam, end=end)
    plain = {"batched beam search in plain torch": Variant(partial(all_at_once, beam=beam))} if end == NEVER else {}
    return Case(
        operation=operation, size=size, numbers={"images": images, "beam": beam, "steps": LONGEST},
        dtype=torch.float32, flop=0.0, bytes=0.0,
        variants={
            "ours": Variant(partial(batched, beam=beam, end=end), ours=True),
            baseline: Variant(loop, scale=images / part),
            **plain,
        },
        inputs=partial(stored_annotations, images, torch.float32, DEVICE),
        small=partial(stored_annotations, CHECKED, torch.float64, "cpu"), reference=loop,
    )  # fmt: skip


CASES = [
    case("beam search", f"64 images, beam 3, {LONGEST} steps", 64, 8, 3, NEVER),
    *(case("captions with attention", f"1,000 images, beam {beam}", 1000, 50, beam, SOON) for beam in (1, 5)),
]


@rows(CASES)
def test_decoding(show, case: Case, variant: str) -> None:
    show(case, variant)
