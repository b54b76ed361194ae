"""The last hidden state, computed once for each distinct prefix of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from capbench.base.processor import computes_bf16
from capbench.kernels.gru.reference import Embedding

PACK_FROM = 2**19  # elements; to pack a smaller weight for oneDNN costs more than the product
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def prefix_tree_last_hidden(
    gru: nn.GRU, embedding: Embedding, captions: Int[Tensor, "caption length"], lengths: Int[Tensor, " caption"]
) -> Float[Tensor, "caption hidden"]:
    """`capbench.kernels.gru.last_hidden`, unchecked, on the CPU."""
    tree = PrefixTree.of(captions.numpy(), lengths.numpy())
    input_weight, recurrent, input_bias, bias = (getattr(gru, f"{name}_l0") for name in PARAMETERS)
    projected = linear(embedding(tree.vocabulary), input_weight, input_bias)
    hidden: Tensor = _TreeGRU.apply(projected.to(recurrent.dtype), recurrent, bias, tree)
    return hidden


@dataclass(frozen=True)
class Level:
    """The nodes of one depth."""

    nodes: slice  # their rows among all nodes
    word: Tensor  # [node], into the vocabulary of the tree
    parent: Tensor  # [parent], the distinct parents as rows among all nodes
    follows: Tensor | None  # [node], into `parent`; None where no two nodes share a parent

    def to_nodes(self, parents: Tensor) -> Tensor:
        """A row for each node, from the row of its parent."""
        return parents if self.follows is None else parents[self.follows]

    def to_parents(self, nodes: Tensor) -> Tensor:
        """A row for each distinct parent: the sum over its nodes."""
        if self.follows is None:
            return nodes
        return nodes.new_zeros(len(self.parent), nodes.shape[1]).index_add_(0, self.follows, nodes)


@dataclass(frozen=True)
class PrefixTree:
    """The distinct prefixes of a batch of captions, shallow before deep."""

    vocabulary: Tensor  # [word], the distinct words
    word: np.ndarray  # [node], into the vocabulary
    parent: np.ndarray  # [node], -1 for the first words
    last: np.ndarray  # [caption], the node that ends it
    bounds: tuple[int, ...]  # the first node of each depth, and the number of nodes

    @classmethod
    def of(cls, captions: np.ndarray, lengths: np.ndarray) -> PrefixTree:
        """The tree of `captions` [caption, length] with `lengths` [caption]."""
        count, longest = len(lengths), int(lengths.max())
        present = np.arange(longest) < lengths[:, None]
        vocabulary, compact = np.unique(np.where(present, captions[:, :longest], captions[0, 0]), return_inverse=True)
        compact = compact.reshape(count, longest)
        node, last = np.full(count, -1), np.empty(count, np.int64)
        words, parents, bounds = [], [], [0]
        for depth in range(longest):
            alive = np.flatnonzero(lengths > depth)
            prefix = (node[alive] + 1) * len(vocabulary) + compact[alive, depth]
            distinct, which = np.unique(prefix, return_inverse=True)
            words.append(distinct % len(vocabulary))
            parents.append(distinct // len(vocabulary) - 1)
            node[alive] = bounds[-1] + which
            ended = lengths == depth + 1
            last[ended] = node[ended]
            bounds.append(bounds[-1] + len(distinct))
        return cls(torch.from_numpy(vocabulary), np.concatenate(words), np.concatenate(parents), last, tuple(bounds))

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The nodes by depth."""
        levels = []
        for start, stop in zip(self.bounds, self.bounds[1:], strict=False):
            parent, follows = np.unique(self.parent[start:stop], return_inverse=True)
            follow = None if len(parent) == stop - start else torch.from_numpy(follows)
            word = torch.from_numpy(self.word[start:stop])
            levels.append(Level(slice(start, stop), word, torch.from_numpy(parent), follow))
        return tuple(levels)

    def ending_in(self, captions: np.ndarray) -> tuple[PrefixTree, np.ndarray]:
        """The subtree that leads to `captions` [chosen], and its nodes as rows of this tree."""
        kept = np.zeros(len(self.word), bool)
        kept[self.last[captions]] = True
        for start, stop in reversed(list(zip(self.bounds[1:], self.bounds[2:], strict=False))):
            kept[self.parent[start:stop][kept[start:stop]]] = True
        rows = np.flatnonzero(kept)
        place, parent = np.cumsum(kept) - 1, self.parent[rows]
        parent = np.where(parent < 0, -1, place[parent])
        bounds = tuple(int(n) for n in np.searchsorted(rows, self.bounds))
        return PrefixTree(self.vocabulary, self.word[rows], parent, place[self.last[captions]], bounds), rows


class _TreeGRU(torch.autograd.Function):
    """h = (1 - z) n + z h', with r, z = sigmoid(x + U h'), n = tanh(x_n + r (U_n h')); x is `projected`."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, recurrent: Tensor, bias: Tensor, tree: PrefixTree) -> Tensor:
        hidden = recurrent.shape[1]
        ctx.compute = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else recurrent.dtype
        multiply = _times(recurrent, ctx.compute)
        states = projected.new_empty(len(tree.word), hidden)
        gates = projected.new_empty(len(tree.word), 3 * hidden)  # r, z, n after their nonlinearities
        reset_part = projected.new_empty(len(tree.word), hidden)  # U_n h' + b_n, which r multiplies
        for level in tree.levels:
            gate = gates[level.nodes]
            torch.index_select(projected, 0, level.word, out=gate)
            if level.nodes.start == 0:
                before, product = torch.zeros_like(states[level.nodes]), bias.expand(len(gate), -1)
            else:
                parents = states[level.parent]
                before, product = level.to_nodes(parents), level.to_nodes(multiply(parents).add_(bias))
            r, z, n = gate.split(hidden, 1)
            gate[:, : 2 * hidden].add_(product[:, : 2 * hidden]).sigmoid_()
            reset_part[level.nodes] = product[:, 2 * hidden :]
            n.addcmul_(r, reset_part[level.nodes]).tanh_()
            torch.lerp(n, before, z, out=states[level.nodes])
        ctx.save_for_backward(recurrent, states, gates, reset_part)
        ctx.tree, ctx.words = tree, len(projected)
        return states[torch.from_numpy(tree.last)]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        recurrent, states, gates, reset_part = ctx.saved_tensors
        tree: PrefixTree = ctx.tree
        active = gradient.ne(0).any(1)
        if not bool(active.all()):
            tree, rows = tree.ending_in(active.nonzero()[:, 0].numpy())
            chosen = torch.from_numpy(rows)
            states, gates, reset_part, gradient = states[chosen], gates[chosen], reset_part[chosen], gradient[active]
        hidden = recurrent.shape[1]
        multiply = _times(recurrent.t(), ctx.compute)  # in the type of the forward pass, as in torch's layers
        d_projected = gradient.new_zeros(ctx.words, 3 * hidden)
        d_state = torch.zeros_like(states).index_add_(0, torch.from_numpy(tree.last), gradient)
        d_product = [gradient.new_zeros(0, 3 * hidden)]  # of each distinct parent, deep before shallow
        before_all = [gradient.new_zeros(0, hidden)]
        d_bias = gradient.new_zeros(3 * hidden)
        for level in reversed(tree.levels):
            root = level.nodes.start == 0
            r, z, n = gates[level.nodes].split(hidden, 1)
            dh = d_state[level.nodes]
            parents = None if root else states[level.parent]
            before = torch.zeros_like(dh) if parents is None else level.to_nodes(parents)
            d_gate = torch.empty_like(gates[level.nodes])
            dr, dz, dn = d_gate.split(hidden, 1)
            torch.mul(dh, 1 - z, out=dn).mul_(1 - n * n)
            torch.mul(dh, before.sub_(n) if level.follows is not None or root else before - n, out=dz)
            dz.mul_(z).mul_(1 - z)
            torch.mul(dn, reset_part[level.nodes], out=dr).mul_(r).mul_(1 - r)
            d_projected.index_add_(0, level.word, d_gate)
            dn.mul_(r)  # now d_gate is the gradient of the recurrent product
            d_bias += d_gate.sum(0)
            if parents is not None:
                d_gate = level.to_parents(d_gate)
                d_state.index_add_(0, level.parent, multiply(d_gate).add_(level.to_parents(dh * z)))
                d_product.append(d_gate)
                before_all.append(parents)
        product, before = torch.cat(d_product).to(ctx.compute), torch.cat(before_all).to(ctx.compute)
        d_recurrent = (product.t() @ before).to(recurrent.dtype)
        return d_projected, d_recurrent, d_bias, None


def _times(weight: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """x -> x @ weight.T for many x, multiplied in `dtype`; a large weight is packed once where oneDNN can."""
    typed = weight.detach().to(dtype)
    if weight.numel() >= PACK_FROM and _can_pack(dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(typed.contiguous(), 128)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(dtype), packed, None, "none", [], "").to(weight.dtype)
    return lambda x: (x.to(dtype) @ typed.t()).to(weight.dtype)


def _can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this type here: bf16 only where it convolves in bf16, float16 never."""
    bf16 = dtype is torch.bfloat16 and computes_bf16(torch.device("cpu"), "convolution")
    if not (bf16 or dtype is torch.float32) or not torch.backends.mkldnn.is_available():
        return False
    return all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
