"""The checkpoints of ruotianluo/ImageCaptioning.pytorch whose model is Show and Tell, as models of ours.

Its ShowTellModel has our equations: the image is the LSTM's first input, and the word 0 begins and ends a caption. Its
LSTM has no biases, which are 0 here. Its other models have other equations and are refused: att2in, for one, gives the
image to the candidate of the LSTM alone, and predicts a word from the hidden state alone.

Sources: captioning/models/ShowTellModel.py; scripts/prepro_labels.py for the numbers of words.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.data.checked_json import Checked, read_json
from capbench.data.vocabulary import END, PAD, SPECIAL, START, UNKNOWN, Vocabulary, refuse_pickle
from capbench.runs.released import Released, expect, load_checkpoint, tensors
from capbench.training.experiment import Training

from .recipe import NICRecipe

NAMES = {
    "img_embed.weight": "image.1.weight",
    "img_embed.bias": "image.1.bias",
    "core.weight_ih_l0": "lstm.weight_ih_l0",
    "core.weight_hh_l0": "lstm.weight_hh_l0",
    "embed.weight": "W_e.weight",
    "logit.weight": "word.weight",
    "logit.bias": "word.bias",
}
NEVER = -1e4  # the score of a word that the released model cannot write
UNK = "UNK"
RATE = 4e-4  # the default of its opts.py
ENCODERS = {2048: "resnet101", 4096: "vgg16"}  # of its features, by dimension
CONVERTED = (
    "in the project that made it: python -c \"import json, pickle; v = pickle.load(open('infos.pkl', 'rb')); "
    "json.dump({'vocab': v['vocab'], 'opt': vars(v['opt'])}, open('infos.json', 'w'), default=str)\""
)


class _Infos(Checked):
    vocab: dict[str, str]  # "1": "a"; 0 is the end
    opt: dict[str, Any] = Field(default_factory=dict)


def read_released(checkpoint: Path, infos: Path) -> Released:
    """A model.pth with its infos as JSON. Raises CapbenchError for another layout, model or size of the vocabulary."""
    refuse_pickle(infos, CONVERTED)
    read = read_json(infos, _Infos)
    numbers = [str(number) for number in range(1, len(read.vocab) + 1)]
    if set(numbers) != read.vocab.keys():
        raise CapbenchError(f"{infos}: vocab must number its words from 1 on, each number once")
    kind = read.opt.get("caption_model", "show_tell")
    state = tensors(load_checkpoint(checkpoint), checkpoint, "the whole file")
    if kind != "show_tell":
        raise CapbenchError(f"{infos} is of a model {kind!r}; only show_tell has the equations of ours")
    expect(set(NAMES), state, checkpoint, "show_tell model with an LSTM of one layer")
    if len(state["embed.weight"]) != len(numbers) + 1:
        raise CapbenchError(
            f"{infos} has {len(numbers):,} words, and {checkpoint} knows {len(state['embed.weight']) - 1:,}; "
            "take the infos that were saved with it"
        )
    hidden, dim = state["core.weight_hh_l0"].shape[-1], state["img_embed.weight"].shape[-1]
    if len(state["core.weight_hh_l0"]) != 4 * hidden:
        raise CapbenchError(f"{checkpoint} has a core of another kind than an LSTM; only rnn_type lstm is read")
    spelled = [read.vocab[number] for number in numbers]
    words = tuple(word for word in spelled if word != UNK)
    if strange := [word for word in words if word in SPECIAL]:
        raise CapbenchError(f"{infos}: the word {strange[0]!r} is one of capbench's own marks")
    rate = read.opt.get("learning_rate")  # of the other options of training nothing is kept: nothing is trained
    training = Training(epochs=1, batch_size=1, learning_rate=rate if isinstance(rate, float) and rate > 0 else RATE)
    return Released(
        recipe=NICRecipe(
            embedding_dim=state["embed.weight"].shape[-1],
            hidden_dim=hidden,
            dropout=0.0,
            view="whole",
            choose_beam=False,
            training=training,
        ),
        vocabulary=Vocabulary(words, (0,) * len(words)),
        weights=weights_of(state, rows_of(spelled)),
        feature_dim=dim,
        preset="show_tell",
        dataset="coco",
        encoder=ENCODERS.get(dim, "resnet101"),
        notes=(
            "in the layout of github.com/ruotianluo/ImageCaptioning.pytorch",
            "its own features are of the image at its full size and shape",
        ),
    )


def rows_of(spelled: list[str]) -> list[int]:
    """The row of the release for each of our words, the special ones first; its row 0 begins and ends a caption."""
    unknown = spelled.index(UNK) + 1 if UNK in spelled else 0
    special = {PAD: 0, START: 0, END: 0, UNKNOWN: unknown}
    return [*(special[number] for number in range(len(SPECIAL))), *(n for n, w in enumerate(spelled, 1) if w != UNK)]


def weights_of(state: Mapping[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    """The weights under our names, the rows of words in our order."""
    ours = {NAMES[name]: value for name, value in state.items()}
    for name in ("W_e.weight", "word.weight", "word.bias"):
        ours[name] = ours[name][torch.tensor(rows)]
    silent = [PAD, START] + [UNKNOWN] * (rows[UNKNOWN] == 0)
    ours["word.weight"][silent] = 0.0
    ours["word.bias"][silent] = NEVER
    zeros = torch.zeros(len(ours["lstm.weight_hh_l0"]))
    return ours | {"lstm.bias_ih_l0": zeros, "lstm.bias_hh_l0": zeros.clone()}
