"""Several processes that train one model, as `torchrun` starts them: one for each GPU, or some on CPUs.

It is plain torch.distributed: gloo between CPUs, nccl between GPUs. Lightning Fabric and accelerate wrap a model's
forward pass and average the gradients of losses that know their own items alone; the losses here couple a whole batch
and count its words, and what is left to share is this module and `capbench.training.shares`.

In a run of one process each function returns what it is given. All processes call the same functions in the same
order; what a function says of one process is said of this one. No process executes what another sends: numbers travel
as safetensors, and the rest as JSON.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from capbench.base.errors import CapbenchError, StoppedError, out_of_memory
from capbench.base.launch import started_together
from capbench.base.signals import STOP_SIGNALS, stop_requests

# The longest wait for processes that do the same. gloo notices at once that one has ended; of those that wait within
# nccl, torchrun ends the others.
WAIT = timedelta(minutes=30)
WAIT_FOR_MAIN = timedelta(hours=24)  # and for the main one, which makes features and scores captions alone

Item = TypeVar("Item")
Made = TypeVar("Made")
Checkpoint = tuple[Mapping[str, Tensor], Any]  # tensors and a JSON state, as `capbench.training.checkpoint` loads them

_alone = False  # within `alone`
_waiting: Any = None  # the group of those that wait for the main one


@contextmanager
def joined() -> Iterator[None]:
    """Within it, the processes that were started together know each other.

    After a stop they end together, whatever more signals they get. Raises CapbenchError if they do not find each other,
    or if a machine has fewer GPUs than processes.
    """
    global _waiting
    if started_together() == 1:
        yield
        return
    if on_gpus := torch.cuda.is_available():
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise CapbenchError(f"process {local} of this machine has no GPU of its own; start {gpus} at most on it")
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=WAIT)
        _waiting = dist.new_group(backend="gloo", timeout=WAIT_FOR_MAIN)
    except (RuntimeError, ValueError) as error:
        raise CapbenchError(
            f"the {started_together()} processes do not find each other; start them by torchrun: {error}"
        ) from error
    try:
        yield
    except StoppedError:
        for name in filter(partial(hasattr, signal), STOP_SIGNALS):  # torchrun sends them as soon as one has ended
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        raise
    dist.destroy_process_group()


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def main() -> bool:
    """Whether this process is the one that writes files and pages and reports progress."""
    return rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Within it, this process computes as if it were the only one."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextmanager
def exchange() -> Iterator[None]:
    """Around each exchange with the others. Raises CapbenchError where another has ended, or is silent for too long."""
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise CapbenchError(
            f"process {rank()} of {size()} has lost another one, which ended or is silent ({reason}); the same command "
            "resumes from the newest checkpoint"
        ) from error


def part(items: np.ndarray) -> np.ndarray:
    """This process's share of the items of a batch: consecutive ones, as many as another's or one more."""
    return np.array_split(items, size())[rank()]


def once(work: Callable[[], Any]) -> Any:
    """What `work` returns in the main process, where alone it is done: a JSON value.

    Its CapbenchError or StoppedError is raised in all processes.
    """
    return work() if size() == 1 else json.loads(_from_main(lambda: json.dumps(work()).encode()))


def main_first(work: Callable[[], Made]) -> Made:
    """What `work` returns here, done by the main process before the others: it leaves files that they find.

    Raises StoppedError in all processes where one of them got a signal meanwhile, and the errors of `once`.
    """
    if size() == 1:
        return work()
    made: list[Made] = []
    with stop_requests() as stop_requested:
        once(lambda: made.append(work()))
        if any_of(stop_requested()):
            raise StoppedError
    return made[0] if made else work()


def told(load: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """What `load` returns in the main process, which alone reads the files of a run."""
    if size() == 1:
        return load()
    found: list[Checkpoint | None] = []

    def state() -> Any:
        found.append(load())
        return None if found[0] is None else {"state": found[0][1]}

    answer = once(state)
    if answer is None:
        return None
    tensors = _from_main(lambda: _packed(found[0][0] if found and found[0] else {}))
    return safetensors.torch.load(tensors), answer["state"]


def mapped(function: Callable[[Item], Tensor], items: Iterable[Item]) -> list[Tensor]:
    """`function` of every item, in their order, each computed by one process and known to all.

    The items are the same everywhere, so that the results do not depend on the number of processes.
    """
    if size() == 1:
        return [function(item) for item in items]
    own: dict[str, Tensor] = {}
    count = 0
    for count, item in enumerate(items, 1):
        if (count - 1) % size() == rank():
            own[str(count - 1)] = function(item)
    on_gpu = any_of(any(result.is_cuda for result in own.values()))
    found: dict[str, Tensor] = {}
    for packed in _everybodys(_packed(own)):
        found |= safetensors.torch.load(packed)
    if len(found) != count:
        raise CapbenchError(f"process {rank()} has {count} items to share, and {len(found)} were computed by all")
    return [found[str(place)].to("cuda" if on_gpu else "cpu") for place in range(count)]


def any_of(flag: bool) -> bool:
    """Whether the flag is set in one process or more."""
    if size() == 1:
        return flag
    flags = torch.tensor([flag], dtype=torch.uint8)
    with exchange():
        dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def reduced(share: Tensor, parameters: Sequence[nn.Parameter]) -> float:
    """The loss of a whole batch, given this process's share of it; the gradients become those of that loss.

    A parameter has a gradient afterwards if it had one in any process.
    """
    if size() == 1:
        return float(share.detach())
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    known = share.new_tensor([each.grad is not None for each in parameters])
    summands = torch.cat([share.detach().reshape(1), known, *(each.flatten() for each in gradients)])
    with exchange():
        dist.all_reduce(summands)
        value = float(summands[0])  # on a GPU, this waits for the exchange
    _, known, *sums = summands.split([1, len(parameters), *(each.numel() for each in gradients)])
    for parameter, gradient, is_known in zip(parameters, sums, known.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if is_known else None
    return value


def _from_main(work: Callable[[], bytes]) -> bytes:
    """The bytes that `work` returns in the main process. Its refusal or stop is everybody's."""
    message = b""
    if main():
        try:
            message = b"=" + work()
        except CapbenchError as error:
            message = b"!" + str(error).encode()
        except StoppedError:
            message = b"."
    length = torch.tensor([len(message)])
    with exchange():
        dist.broadcast(length, 0, group=_waiting)
        content = _bytes(message) if main() else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(content, 0, group=_waiting)
    kind, content = int(content[0]), content[1:]
    if kind == ord("."):
        raise StoppedError
    if kind == ord("!"):
        raise CapbenchError(content.numpy().tobytes().decode())
    return content.numpy().tobytes()


def _everybodys(content: bytes) -> list[bytes]:
    """The bytes that each process gives."""
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
    with exchange():
        dist.all_gather(lengths, torch.tensor([len(content)]))
        longest = int(max(lengths))
        padded = [torch.empty(longest, dtype=torch.uint8) for _ in lengths]
        dist.all_gather(padded, _bytes(content.ljust(longest)))
    return [each[: int(length)].numpy().tobytes() for each, length in zip(padded, lengths, strict=True)]


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: each.detach().cpu().contiguous().clone() for name, each in tensors.items()})
