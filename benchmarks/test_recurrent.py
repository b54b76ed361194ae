"""The recurrent layers over batches of captions, forward and backward, against torch's own (cuDNN on a GPU).

GRU: the last state of each caption, 300 -> 1024, batch 128, as in VSE++; ours is `last_hidden`. LSTM: the states after
every word, 512 -> 512, batch 64; the captioners call nn.LSTM over padded captions, none of it our own code. The word
vectors are learned, so gradients flow to them too. All variants go through the same batches, those of the training
loop, in the type that training uses (bf16 if native). The gradient is of a weighted sum of the real words' states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.bench import COMPILED, DEVICE, ON_GPU, Steps, Variant, rows, through_all, training_dtype
from benchmarks.captions import EPOCH, batches, encoded
from benchmarks.parity import near
from capbench.kernels.gru import last_hidden
from capbench.kernels.gru.reference import reference_last_hidden
from capbench.timing.measure import Call
from capbench.training.machine import bf16_where_native

Layer = Callable[..., Tensor]  # recurrence, embedding, captions, lengths -> states
LIBRARY = "cuDNN" if ON_GPU else "torch"
CHECKED = 16


def padded_last_hidden(gru: nn.GRU, words: nn.Embedding, captions: Tensor, lengths: Tensor) -> Tensor:
    states, _ = gru(words(captions))
    last = (lengths - 1).to(captions.device)
    return states[torch.arange(len(last), device=captions.device), last]


def padded_states(lstm: nn.LSTM, words: nn.Embedding, captions: Tensor, lengths: Tensor) -> Tensor:
    states: Tensor = lstm(words(captions))[0]
    return states


def packed_states(lstm: nn.LSTM, words: nn.Embedding, captions: Tensor, lengths: Tensor) -> Tensor:
    packed = pack_padded_sequence(words(captions), lengths, batch_first=True, enforce_sorted=False)
    states: Tensor = pad_packed_sequence(lstm(packed)[0], batch_first=True)[0]
    return states


def modules(cell: type[nn.GRU] | type[nn.LSTM], word: int, hidden: int) -> tuple[nn.RNNBase, nn.Embedding]:
    torch.manual_seed(0)
    return cell(word, hidden, batch_first=True), nn.Embedding(len(encoded()[0]), word)


def weight_like(states: Tensor, lengths: Tensor) -> Tensor:
    """The weights of the sum; 0 beyond the end of a caption."""
    weight = torch.randn(states.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    if states.ndim == 3:
        weight = weight * (torch.arange(states.shape[1]) < lengths[:, None])[:, :, None]
    return weight.to(states)


def gradient(
    layer: Layer, recurrence: nn.RNNBase, words: nn.Embedding, captions: Tensor, lengths: Tensor, weight: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The states, and the gradient of their weighted sum for all parameters."""
    with bf16_where_native(captions.device, "full" if weight is None else "auto"):
        states = layer(recurrence, words, captions, lengths)
    weight = weight_like(states, lengths) if weight is None else weight.to(states.dtype)
    return states, torch.autograd.grad(states, [*recurrence.parameters(), *words.parameters()], weight)


def made(layer: Layer, cell: type[nn.GRU] | type[nn.LSTM], word: int, hidden: int, batch: int, compiled: bool) -> Call:
    recurrence, words = modules(cell, word, hidden)
    recurrence.to(DEVICE)
    words.to(DEVICE)
    inputs = []
    for captions, lengths in batches(batch, grouped=True):
        states = captions.new_empty(
            batch, *([captions.shape[1]] if cell is nn.LSTM else []), hidden, dtype=torch.float32
        )
        inputs.append((captions, lengths, weight_like(states, lengths)))
    return through_all(partial(gradient, torch.compile(layer) if compiled else layer, recurrence, words), inputs)


def check(layers: Mapping[str, Layer], cell: type[nn.GRU] | type[nn.LSTM], word: int, hidden: int) -> None:
    """All variants except compiled ones, in float64 on the CPU: weighted states and every gradient."""
    captions, lengths = batches(CHECKED, grouped=False)[0]
    wanted: list[Tensor] = []
    for name, layer in layers.items():
        if name.startswith(COMPILED):
            continue
        recurrence, words = modules(cell, word, hidden)
        states, gradients = gradient(layer, recurrence.double(), words.double(), captions.cpu(), lengths, None)
        found = [states * weight_like(states, lengths), *gradients]
        wanted = wanted or found
        for a, b in zip(found, wanted, strict=True):
            near(a.detach(), b.detach(), 1e-9, f"{cell.__name__}: {name}, in float64")


def steps(cell: type[nn.GRU] | type[nn.LSTM], word: int, hidden: int, batch: int, layers: Mapping[str, Layer]) -> Steps:
    variants = {
        name: Variant(
            partial(made, layer, cell, word, hidden, batch, compiled=name.startswith(COMPILED)),
            ours=name.startswith("ours"),
        )
        for name, layer in layers.items()
    }
    return Steps(
        operation=f"{cell.__name__}, forward and backward",
        size=f"batch {batch}, {word} -> {hidden}",
        numbers={"batch": batch, "word": word, "hidden": hidden},
        variants=variants, check=partial(check, layers, cell, word, hidden),
        dtype=training_dtype(), calls=EPOCH,
    )  # fmt: skip


GRU: dict[str, Layer] = {
    "ours": last_hidden,
    f"{LIBRARY}: nn.GRU padded": padded_last_hidden,
    f"{LIBRARY}: nn.GRU packed": reference_last_hidden,
    f"{COMPILED} of the padded": padded_last_hidden,
}
LSTM: dict[str, Layer] = {
    f"ours: nn.LSTM of {LIBRARY}": padded_states,
    f"{LIBRARY}: nn.LSTM packed": packed_states,
    f"{COMPILED} of the padded": padded_states,
}
CASES = [steps(nn.GRU, 300, 1024, 128, GRU), steps(nn.LSTM, 512, 512, 64, LSTM)]


@rows(CASES)
def test_recurrent(show, case: Steps, variant: str) -> None:
    show(case, variant)
