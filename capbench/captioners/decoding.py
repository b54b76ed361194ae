"""Beam search, greedy search and sampling of captions, word by word, over one `step` function.

A step takes the last word of every hypothesis and the state, and returns the log-probabilities of the next word (as
from log_softmax) and the new state. All tensors begin with [image, beam]; the beam dimension is 1 in the initial state
and the first call, later up to `beam_size` or `draws`. The step closes over what belongs to an image, such as its
annotations, so that beams share it. Padding (word 0), `start` and the words in `never` are not generated. The device is
that of the state; the CPU for an empty one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from capbench.base.errors import CapbenchError

PADDING = 0
_CHUNK = 32  # words; near the fastest for vocabularies of 1,000 to 30,000
_STEPS_PER_CHECK = 8  # on an accelerator, where the test for the end makes the host wait

State = Mapping[str, Tensor]
Step = Callable[[Int[Tensor, "image beam"], State], tuple[Float[Tensor, "image beam word"], State]]


@dataclass(frozen=True, eq=False)
class Captions:
    """The `n_best` captions of each image; `length` is `max_length`.

    Where there are fewer, the others have no word, a log-probability of -inf, and are not finished.
    """

    words: Int[Tensor, "image n_best length"]  # with END where it was reached, and 0 after it
    log_probs: Float[Tensor, "image n_best"]  # sums over the words, END included, not renormalised without `never`
    finished: Bool[Tensor, "image n_best"]  # whether END was reached
    traces: Mapping[str, Tensor]  # state entries after the step that predicted each word, 0 after the caption


@torch.no_grad()
def beam_search(
    step: Step, state: State, images: int, beam_size: int, max_length: int, *, start: int, end: int,
    never: Sequence[int] = (), length_power: float = 0.0, n_best: int = 1, trace: Sequence[str] = (),
) -> Captions:  # fmt: skip
    """The `n_best` captions that a beam of `beam_size` finds, best first by log_prob / length**length_power.

    The beam starts with one empty hypothesis. Each step extends every live hypothesis by every word. An extension by
    `end` among the best `beam_size` of all extensions is finished and leaves the beam; the best `beam_size` of the
    others, by log_prob, stay alive (Sutskever et al. 2014, section 3.2; Vinyals et al. 2015, section 3.1). The search
    of an image ends after `max_length` words, END included, or when no live hypothesis can surpass the worst of
    `beam_size` finished ones. If fewer than `n_best` are finished, unfinished captions follow them. Ties go to the
    lower beam, then to the lower word. A caption of probability 0 does not exist.

    The result for an image does not depend on the others. The host waits for the device every 8 steps and at the end.
    Raises CapbenchError when a log-probability is NaN, an argument is out of its range, or the state lacks a name in
    `trace`.
    """
    if not 1 <= n_best <= beam_size:
        raise CapbenchError(f"n_best must lie between 1 and the beam size {beam_size}, and is {n_best}")
    if not 0 <= length_power < math.inf:
        raise CapbenchError(f"length_power must be 0 or more, and is {length_power}")
    device = _checked_device(state, images, max_length, start, end)
    words = torch.full((images, 1), start, device=device)
    live = torch.zeros(images, 1, device=device)
    ended = _Ended.none(images, beam_size, device)
    levels: list[_Level] = []
    for length in range(1, max_length + 1):
        log_probs, state = step(words, state)
        if length == 1:
            unwanted = _unwanted(log_probs, state, start, end, never, trace)
        best, parent, words = _best_extensions(live, log_probs, unwanted, beam_size)
        is_end = words == end
        fresh = best.masked_fill(~is_end, -torch.inf)[:, :beam_size]
        ended = ended.with_fresh(fresh, parent[:, :beam_size], length, length_power)
        live, kept = best.masked_fill(is_end, -torch.inf).sort(dim=1, descending=True, stable=True)
        live, kept = live[:, :beam_size], kept[:, :beam_size]
        parent, words = parent.gather(1, kept), words.gather(1, kept)
        levels.append(_Level(words, parent, {name: state[name] for name in trace}))
        state = {name: _pick(entry, parent) for name, entry in state.items()}
        # Log-probabilities only fall: at best a live hypothesis reaches max_length at no further cost.
        if _may_ask(length, device) and bool((live[:, 0] / max_length**length_power <= ended.score[:, -1]).all()):
            break
    return _captions(levels, ended, live, n_best, end, max_length)


def greedy(
    step: Step, state: State, images: int, max_length: int, *, start: int, end: int,
    never: Sequence[int] = (), trace: Sequence[str] = (),
) -> Captions:  # fmt: skip
    """`beam_search` with a beam of one: the likeliest word at each step, until END or `max_length`."""
    return beam_search(step, state, images, 1, max_length, start=start, end=end, never=never, trace=trace)


@torch.no_grad()
def sample(
    step: Step, state: State, images: int, max_length: int, *, start: int, end: int, generator: torch.Generator,
    never: Sequence[int] = (), temperature: float = 1.0, draws: int = 1, trace: Sequence[str] = (),
) -> Captions:  # fmt: skip
    """`draws` independent captions an image, in the order drawn, from probabilities to the power 1 / `temperature`.

    The draw is from the words that may be generated. The log_probs are the model's, at temperature 1. `generator` gives
    image x draw x max_length numbers, wherever the captions end. Raises CapbenchError as `beam_search` does.
    """
    if draws < 1:
        raise CapbenchError(f"draws must be 1 or more, and is {draws}")
    if not 1e-30 <= temperature <= 1e30:
        raise CapbenchError(f"temperature must be positive (1e-30 to 1e30), and is {temperature}")
    device = _checked_device(state, images, max_length, start, end)
    shape = (images, draws, max_length)
    uniform = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).to(device)
    words = torch.full((images, 1), start, device=device)
    log_prob = torch.zeros(images, draws, device=device)
    alive = torch.ones(images, draws, dtype=torch.bool, device=device)
    chosen: list[Tensor] = []
    traced: dict[str, list[Tensor]] = {name: [] for name in trace}
    for index in range(max_length):
        log_probs, state = step(words, state)
        if index == 0:
            unwanted = _unwanted(log_probs, state, start, end, never, trace)
            state = {name: _pick(entry, torch.zeros_like(alive, dtype=torch.int64)) for name, entry in state.items()}
        words, gained = _draw(log_probs, uniform[:, :, index], unwanted, temperature)
        words = words.masked_fill(~alive, PADDING)
        log_prob = log_prob + gained.masked_fill(~alive, 0.0)
        chosen.append(words)
        for name, entries in traced.items():
            entries.append(_where(alive, state[name]))
        alive = alive & (words != end)
        if _may_ask(index + 1, device) and not bool(alive.any()):
            break
    _refuse_nan(log_prob)
    exists = log_prob > -torch.inf
    traces = {name: _where(exists, _joined(entries, max_length)) for name, entries in traced.items()}
    return Captions(_where(exists, _joined(chosen, max_length)), log_prob, exists & ~alive, traces)


def ensemble(steps: Sequence[Step]) -> Step:
    """One step that averages the probabilities of several models over the same words.

    `join_states` makes its initial state, which holds the entries of all models: "attention" of the second one is
    "1.attention", in `trace` too. Raises CapbenchError when there is no step.
    """
    if not steps:
        raise CapbenchError("an ensemble needs one model or more")

    def step(words: Tensor, state: State) -> tuple[Tensor, State]:
        log_probs, states = [], []
        for number, step_of_model in enumerate(steps):
            prefix = f"{number}."
            entries = {name.removeprefix(prefix): entry for name, entry in state.items() if name.startswith(prefix)}
            scores, after = step_of_model(words, entries)
            log_probs.append(scores)
            states.append(after)
        return reduce(torch.logaddexp, log_probs) - math.log(len(steps)), join_states(states)

    return step


def join_states(states: Sequence[State]) -> dict[str, Tensor]:
    """The state of an `ensemble` from those of its models, in the same order."""
    return {f"{number}.{name}": entry for number, state in enumerate(states) for name, entry in state.items()}


class _Level(NamedTuple):
    """The live hypotheses after a step: last words and parents [image, beam], and the traced entries before both."""

    words: Tensor
    parent: Tensor
    traced: dict[str, Tensor]


class _Ended(NamedTuple):
    """The best finished hypotheses of each image, [image, beam_size]; their END is not among the levels."""

    score: Tensor  # -inf in an empty place (length and parent 0), which a newcomer at -inf does not replace
    log_prob: Tensor
    length: Tensor
    parent: Tensor

    @classmethod
    def none(cls, images: int, beam_size: int, device: torch.device) -> _Ended:
        empty = torch.full((images, beam_size), -torch.inf, device=device)
        number = torch.zeros(images, beam_size, dtype=torch.int64, device=device)
        return cls(empty, empty, number, number)

    def with_fresh(self, log_prob: Tensor, parent: Tensor, length: int, length_power: float) -> _Ended:
        fresh = (log_prob / length**length_power, log_prob, torch.full_like(parent, length), parent)
        score, log_prob, lengths, parents = (torch.cat(both, 1) for both in zip(self, fresh, strict=True))
        score, order = score.sort(dim=1, descending=True, stable=True)
        order = order[:, : self.score.shape[1]]
        kept = (entry.gather(1, order) for entry in (log_prob, lengths, parents))
        return _Ended(score[:, : order.shape[1]], *kept)


def _best_extensions(live: Tensor, log_probs: Tensor, unwanted: list[int], beam_size: int) -> tuple[Tensor, ...]:
    """log_prob, parent and word of the extensions of each image that can end or stay alive, best first.

    Only one word ends a hypothesis. So the extensions of one hypothesis are among its best beam_size + 1, and those of
    all among the best 2 * beam_size.
    """
    count = min(beam_size + 1 + len(unwanted), log_probs.shape[-1])
    values, words = _largest(log_probs, count)
    for word in unwanted:
        values = values.masked_fill(words == word, -torch.inf)
    total, order = (live.unsqueeze(-1) + values).flatten(1).sort(dim=1, descending=True, stable=True)
    order = order[:, : 2 * beam_size]
    return total[:, : 2 * beam_size], order // count, words.flatten(1).gather(1, order)


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of the last dimension and their indices, largest first, ties to the lower index.

    torch.topk does not define the order of ties. Each of the largest values is in one of the `count` chunks with the
    largest maxima (ties to the lower chunk), so that one pass over all values is enough.
    """
    size = values.shape[-1]
    if size <= 6 * count:
        ordered = values.sort(dim=-1, descending=True, stable=True)
        return ordered.values[..., :count], ordered.indices[..., :count]
    width = max(2, min(_CHUNK, size // (4 * count)))
    chunks = size // width
    whole, rest = values.split([chunks * width, size % width], -1)
    whole = whole.unflatten(-1, (chunks, width))
    near = _largest(whole.amax(-1), count)[1].sort(dim=-1).values
    candidates = whole.gather(-2, near.unsqueeze(-1).expand(*near.shape, width)).flatten(-2)
    largest, at = _largest(torch.cat([candidates, rest], -1), count)
    in_chunk = near.gather(-1, (at // width).clamp(max=count - 1)) * width + at % width
    return largest, torch.where(at < count * width, in_chunk, at + (chunks - count) * width)


def _captions(levels: list[_Level], ended: _Ended, live: Tensor, n_best: int, end: int, max_length: int) -> Captions:
    """The finished hypotheses, then the live ones, traced back to their first words."""
    log_prob = torch.cat([ended.log_prob, live], 1)
    _refuse_nan(log_prob)
    order = (log_prob > -torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :n_best]
    log_prob = log_prob.gather(1, order)
    finished = (log_prob > -torch.inf) & (order < ended.log_prob.shape[1])
    beams = torch.arange(live.shape[1], device=live.device).expand_as(live)
    at = torch.cat([ended.parent, beams], 1).gather(1, order)
    length = torch.cat([ended.length, torch.full_like(beams, len(levels))], 1).gather(1, order)
    in_levels = length - finished.long()
    words: list[Tensor] = []
    traced: dict[str, list[Tensor]] = {name: [] for name in levels[0].traced}
    for index in reversed(range(len(levels))):
        level = levels[index]
        inside = index < in_levels
        word = _where(inside, level.words.gather(1, at))
        words.append(word.masked_fill(finished & (index == in_levels), end))
        at = torch.where(inside, level.parent.gather(1, at), at)
        for name, entries in traced.items():
            entries.append(_where(index < length, _pick(level.traced[name], at)))
    traces = {name: _joined(entries[::-1], max_length) for name, entries in traced.items()}
    return Captions(_joined(words[::-1], max_length), log_prob, finished, traces)


def _draw(log_probs: Tensor, uniform: Tensor, unwanted: list[int], temperature: float) -> tuple[Tensor, Tensor]:
    """Words [image, draw] and their log_probs from `uniform` [image, draw]; `log_probs` may have one beam for all."""
    images, beams, size = log_probs.shape
    draws = uniform.shape[1]
    weight = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32), copy=True)
    for word in unwanted:
        weight[..., word] = -torch.inf
    largest = weight.amax(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).min)
    cumulative = weight.sub_(largest).div_(temperature).exp_().cumsum(-1)
    total = cumulative[..., -1:]
    # Below the total even after rounding, so that the drawn word has a weight above 0.
    target = uniform.reshape(images, beams, draws // beams).to(total.dtype) * total
    target = torch.minimum(target, total.nextafter(torch.zeros_like(total)))
    words = torch.searchsorted(cumulative, target, right=True).clamp(max=size - 1)
    gained = log_probs.gather(-1, words).masked_fill(total == 0, -torch.inf).masked_fill(total.isnan(), torch.nan)
    return words.reshape(images, draws), gained.reshape(images, draws)


def _checked_device(state: State, images: int, max_length: int, start: int, end: int) -> torch.device:
    if max_length < 1:
        raise CapbenchError(f"max_length must be 1 or more, and is {max_length}")
    if end in (PADDING, start):
        raise CapbenchError(f"the end word {end} must differ from padding ({PADDING}) and the start word ({start})")
    for name, entry in state.items():
        if entry.shape[:2] != (images, 1):
            raise CapbenchError(f"state entry {name!r} must begin with [{images}, 1], and is {list(entry.shape)}")
    return next(iter(state.values())).device if state else torch.device("cpu")


def _unwanted(
    log_probs: Tensor, state: State, start: int, end: int, never: Sequence[int], trace: Sequence[str]
) -> list[int]:
    """The words that are not generated, after checks of what the first step returned."""
    size = log_probs.shape[-1]
    if not 0 <= end < size:
        raise CapbenchError(f"the end word {end} is outside the vocabulary of {size} that the step predicts")
    for name in trace:
        if name not in state:
            raise CapbenchError(f"cannot trace {name!r}: the step's state has {', '.join(state) or 'no entry'}")
    return [word for word in sorted({PADDING, start, *never}) if 0 <= word < size]


def _refuse_nan(log_prob: Tensor) -> None:
    if bool(log_prob.isnan().any()):
        raise CapbenchError("the captioner gave a log-probability of NaN: has it diverged?")


def _may_ask(steps: int, device: torch.device) -> bool:
    return device.type == "cpu" or steps % _STEPS_PER_CHECK == 0


def _pick(entry: Tensor, beam: Tensor) -> Tensor:
    """entry [image, beam, ...] at the beams [image, n] -> [image, n, ...]."""
    rows = torch.arange(len(entry), device=entry.device).unsqueeze(1) * entry.shape[1] + beam
    return entry.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, beam.shape)


def _where(keep: Tensor, entry: Tensor) -> Tensor:
    """entry [image, n, ...] where keep [image, n], and 0 elsewhere."""
    return entry.masked_fill(~keep.reshape(*keep.shape, *[1] * (entry.dim() - keep.dim())), 0)


def _joined(steps: Sequence[Tensor], max_length: int) -> Tensor:
    """The entries [image, n, ...] of each step as one [image, n, max_length, ...], with 0 after the last."""
    whole = steps[0].new_zeros(*steps[0].shape[:2], max_length, *steps[0].shape[2:])
    whole[:, :, : len(steps)] = torch.stack(list(steps), 2)
    return whole
