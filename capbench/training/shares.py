"""What a loss says where several processes compute it together (`capbench.training.processes`).

Each process computes the loss of its own captions of a batch, its share. The shares of all add up to the loss of the
whole batch, and so do their gradients:

- a sum over captions needs nothing;
- a mean is `mean(x)`, or a sum divided by `everywhere(count)`;
- a loss that couples captions is computed by every process from `gathered` embeddings, and each has a `share` of it.

`check_loss` compares the sum with one process, and refuses a loss whose shares do not add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm

from capbench.base.errors import CapbenchError
from capbench.training import processes
from capbench.training.experiment import Experiment

PROBED = 4  # captions a process, and one more, on which `check_loss` compares

Count = TypeVar("Count", int, Tensor)


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of the batch, with gradients for each; zeros fill shorter dimensions.

    The gradient of a row is the sum of those that all processes have for it. Of `torch.distributed.nn` the gather asks
    for shares of one size.
    """
    return rows if processes.size() == 1 else _Gathered.apply(rows)


def everywhere(count: Count) -> Count:
    """The sum of a count, or of any value without a gradient, over all processes."""
    if processes.size() == 1:
        return count
    total = count.detach().clone() if isinstance(count, Tensor) else torch.tensor(count)
    with processes.exchange():
        dist.all_reduce(total)
    return total if isinstance(count, Tensor) else int(total)


def mean(values: Float[Tensor, "*item"]) -> Float[Tensor, ""]:
    """The share of this process in the mean over the items of all."""
    return values.mean() if processes.size() == 1 else values.sum() / everywhere(values.numel())


def share(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The share of this process in a loss that every process computes for the whole batch."""
    return loss if processes.size() == 1 else loss / processes.size()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        shapes = [torch.zeros(rows.dim(), dtype=torch.int64) for _ in range(processes.size())]
        with processes.exchange():
            dist.all_gather(shapes, torch.tensor(rows.shape))
            largest = torch.stack(shapes).amax(0).tolist()
            padding = [(0, large - own) for large, own in zip(largest, rows.shape, strict=True)]
            padded = pad(rows, [edge for pair in reversed(padding) for edge in pair]).contiguous()
            parts = [torch.empty_like(padded) for _ in shapes]
            dist.all_gather([_plain(each) for each in parts], _plain(padded))
        counts = [int(shape[0]) for shape in shapes]
        ctx.first, ctx.shape = sum(counts[: processes.rank()]), rows.shape
        return torch.cat([each[:count] for each, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        half = gradient.dtype in (torch.float16, torch.bfloat16)
        total = (gradient.float() if half else gradient.clone()).contiguous()
        with processes.exchange():
            dist.all_reduce(total)
        own = total[ctx.first : ctx.first + ctx.shape[0]]
        return own[tuple(slice(length) for length in ctx.shape)].to(gradient.dtype)


def _plain(rows: Tensor) -> Tensor:
    """The memory of rows as bytes, which every backend moves; of all numbers it moves some alone."""
    return rows.flatten().view(torch.uint8)


class SharedBatchNorm(_BatchNorm):
    """Batch norm by the mean and the variance of all processes' items; in one process torch's own.

    torch.nn.SyncBatchNorm needs a GPU.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""

    def forward(self, input: Float[Tensor, "item channel *place"]) -> Float[Tensor, "item channel *place"]:
        if not self.training or processes.size() == 1:
            return super().forward(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        others = [dimension for dimension in range(x.dim()) if dimension != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        n = everywhere(x.numel() // x.shape[1])
        mean = gathered(x.sum(others)[None]).sum(0) / n
        centred = x - mean.view(shape)
        variance = gathered(centred.square().sum(others)[None]).sum(0) / n
        self._note(mean.detach(), variance.detach() * n / (n - 1))
        y = centred / (variance + self.eps).sqrt().view(shape)
        return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)

    def _note(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running averages."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight)


def share_model(model: nn.Module) -> None:
    """Give all processes the weights of the main one, and let the model's batch norms see the whole batch.

    Raises CapbenchError for a batch norm that is none of torch's own.
    """
    if processes.size() == 1:
        return
    for name, layer in list(model.named_modules()):
        if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            layer.__class__ = SharedBatchNorm  # its parameters, averages and place stay what they are
        elif isinstance(layer, _BatchNorm) and not isinstance(layer, SharedBatchNorm | nn.SyncBatchNorm):
            kind = type(layer).__name__
            raise CapbenchError(
                f"{name} is a {kind}, which would see the share of one process alone; train this model in one process"
            )
    begun = processes.told(lambda: (model.state_dict(), {}))
    assert begun is not None
    model.load_state_dict(begun[0])


@torch.no_grad()
def check_loss(experiment: Experiment, batches: Sequence[np.ndarray], epoch: int, seed: int) -> None:
    """Compare the loss of some captions in one process with the sum of the shares of all, in evaluation mode.

    A loss that is random even then, by crops, cannot be compared. Raises CapbenchError where the two differ.
    """
    if processes.size() == 1 or not len(batches):
        return
    captions, count = np.concatenate(batches), PROBED * processes.size() + 1
    probe = captions[np.linspace(0, len(captions) - 1, min(count, len(captions))).astype(int)]
    experiment.model.eval()
    with processes.alone():
        one, again = (_seeded(experiment, probe, epoch, seed + more) for more in (0, 1))
    if len(probe) < processes.size() or processes.any_of(float(one) != float(again)):
        return
    together = everywhere(_seeded(experiment, processes.part(probe), epoch, seed))
    if not math.isclose(float(one), float(together), rel_tol=1e-3, abs_tol=1e-5):
        raise CapbenchError(
            f"the loss of {len(probe)} captions is {float(one):g} in one process and {float(together):g} in "
            f"{processes.size()}: it is none that processes can share; train in one, or write the loss by "
            "capbench.training.shares"
        )


def _seeded(experiment: Experiment, captions: np.ndarray, epoch: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return experiment.loss(captions, epoch).detach().double()
