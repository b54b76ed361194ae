"""The checkpoints that the released code of VSE++ saves, as models of ours.

Sources: github.com/fartashf/vsepp, train.py (what is saved, and the defaults of its options), model.py (names, and what
is normalised when), vocab.py and data.py (numbers of words; captions are in lower case and tokenised by nltk).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nltk
import torch
from pydantic import NonNegativeInt
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.data.checked_json import Checked, read_json
from capbench.data.vocabulary import SPECIAL, Vocabulary, refuse_pickle
from capbench.runs.released import Released, expect, load_checkpoint, tensors
from capbench.training.experiment import Training
from capbench.vision.extraction import View

from .recipe import VSERecipe

DEFAULTS: dict[str, Any] = {
    "data_name": "precomp", "cnn_type": "vgg19", "measure": "cosine", "use_abs": False, "no_imgnorm": False,
    "max_violation": False, "margin": 0.2, "num_layers": 1, "num_epochs": 30, "batch_size": 128,
    "learning_rate": 2e-4, "lr_update": 15, "grad_clip": 2.0, "finetune": False,
}  # fmt: skip
TEXT = {f"rnn.{name}_l0": f"psi.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
TEXT["embed.weight"] = "words.weight"
IMAGE = {"fc.weight": "W_f.weight", "fc.bias": "W_f.bias"}
DATASETS = {"coco": "coco", "10crop": "coco", "f8k": "flickr8k", "f30k": "flickr30k"}  # by the start of data_name
ENCODERS = {4096: "vgg19", 2048: "resnet152"}  # of precomputed features, by dimension
CLASSIFIERS = {"vgg": "classifier.6", "resnet": "fc"}  # what the release cuts off a network
SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")  # its first words, in the order of ours
CONVERTED = (
    "in the project that made it: python -c \"import json, pickle; v = pickle.load(open('vocab.pkl', 'rb')); "
    "json.dump(vars(v), open('vocab.json', 'w'))\""
)


def read_released(checkpoint: Path, vocabulary: Path) -> Released:
    """A model_best.pth.tar or checkpoint.pth.tar with its vocabulary as JSON.

    Raises CapbenchError for another layout, a model that is none of ours, and a vocabulary of another size.
    """
    words = read_vocabulary(vocabulary)
    saved = load_checkpoint(checkpoint)
    model, options = (saved.get("model"), saved.get("opt")) if isinstance(saved, dict) else (None, None)
    if not isinstance(model, list | tuple) or len(model) != 2 or not hasattr(options, "__dict__"):
        raise CapbenchError(f"{checkpoint} has not the layout of vsepp's train.py: model (a list of two) and opt")
    opt = DEFAULTS | vars(options)
    image, text = (tensors(model[i], checkpoint, f"model[{i}]") for i in (0, 1))
    cnn = {name: value for name, value in image.items() if name.startswith("cnn.")}
    projection = {name: value for name, value in image.items() if name not in cnn}
    expect(set(TEXT), text, checkpoint, "caption encoder of VSE++ (one layer, one direction)")
    expect(set(IMAGE), projection, checkpoint, "image encoder of VSE++")
    if len(text["embed.weight"]) != len(words):
        raise CapbenchError(
            f"{vocabulary} has {len(words):,} words, and {checkpoint} knows {len(text['embed.weight']):,}; "
            "take the vocabulary that it was trained with"
        )
    dim = projection["fc.weight"].shape[1]
    weights = {TEXT[name]: value for name, value in text.items()}
    weights |= {IMAGE[name]: value for name, value in projection.items()}
    data = str(opt["data_name"])
    try:
        recipe = recipe_of(opt, projection["fc.weight"], text["embed.weight"], checkpoint)
        said = {key: float(saved[key]) for key in ("epoch", "best_rsum") if key in saved}
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CapbenchError(f"{checkpoint}: opt has a value of another kind: {error}") from error
    return Released(
        recipe=recipe,
        vocabulary=words,
        weights=weights,
        feature_dim=dim,
        preset=("order" if recipe.similarity == "order" else "vse") + kind_of(recipe),
        dataset=next((name for start, name in DATASETS.items() if data.startswith(start)), "coco"),
        encoder=str(opt["cnn_type"]) if cnn else ENCODERS.get(dim, str(opt["cnn_type"])),
        encoder_weights=cnn_of(str(opt["cnn_type"]), cnn, dim, checkpoint) if cnn else {},
        tokens=tokens,
        notes=(
            f"in the layout of github.com/fartashf/vsepp, trained on {data}"
            + "".join(f", {key} {value:g}" for key, value in said.items()),
            f"captions are tokenised by nltk {nltk.__version__}, each {'sentence' if has_punkt() else 'as one line'}",
        ),
    )


def kind_of(recipe: VSERecipe) -> str:
    """The end of the name of a preset: "pp" for the max of hinges, "0" for the sum."""
    return "pp" if recipe.loss == "max_of_hinges" else "0"


def recipe_of(opt: Mapping[str, Any], fc: Tensor, words: Tensor, path: Path) -> VSERecipe:
    """The recipe that the options of a command describe.

    Raises CapbenchError for a model that is none of ours; TypeError, ValueError and OverflowError for a value that is
    no option's.
    """
    for name in ("max_violation", "use_abs", "no_imgnorm"):
        if not isinstance(opt[name], bool):
            raise TypeError(f"{name} is {opt[name]!r}, neither True nor False")
    if opt["measure"] not in ("cosine", "order") or (opt["measure"] == "order" and opt["no_imgnorm"]):
        raise CapbenchError(f"{path}: measure {opt['measure']!r} with no_imgnorm {opt['no_imgnorm']} is none of ours")
    view: View = "10C" if str(opt["data_name"]).startswith("10crop") else "1C"
    return VSERecipe(
        loss="max_of_hinges" if opt["max_violation"] else "sum_of_hinges",
        similarity="order" if opt["measure"] == "order" else "dot" if opt["no_imgnorm"] else "cosine",
        absolute=bool(opt["use_abs"]),
        margin=float(opt["margin"]),
        embedding_dim=len(fc),
        word_dim=words.shape[1],
        view=view,
        training=Training(
            epochs=int(opt["num_epochs"]),
            batch_size=int(opt["batch_size"]),
            learning_rate=float(opt["learning_rate"]),
            lr_step_epochs=int(opt["lr_update"]),
            clip_norm=float(opt["grad_clip"]) or None,
            precision="full",
        ),
    )


def cnn_of(name: str, cnn: Mapping[str, Tensor], dim: int, path: Path) -> dict[str, Tensor]:
    """A network saved with the model, under torchvision's names, with zeros for the classifier that it has lost."""
    family = next((family for family in CLASSIFIERS if name.startswith(family)), None)
    if family is None:
        raise CapbenchError(f"{path} holds a network {name}; only those of VGG and ResNet are read")
    state = {key.removeprefix("cnn.").replace("module.", "", 1): value for key, value in cnn.items()}
    if family == "vgg" and "classifier.1.weight" in state:  # of torchvision before its dropout moved
        moved = {"classifier.1.": "classifier.0.", "classifier.4.": "classifier.3."}
        state = {moved.get(key[:13], key[:13]) + key[13:]: value for key, value in state.items()}
    layer = CLASSIFIERS[family]
    return state | {f"{layer}.weight": torch.zeros(1000, dim), f"{layer}.bias": torch.zeros(1000)}


class _Words(Checked):
    word2idx: dict[str, NonNegativeInt]


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of vocab.py, its fields as JSON. Raises CapbenchError for its pickle, saying how to convert it."""
    refuse_pickle(path, CONVERTED)
    numbers = read_json(path, _Words).word2idx
    words = sorted(numbers, key=lambda word: numbers[word])
    if [numbers[word] for word in words] != list(range(len(words))):
        raise CapbenchError(f"{path}: word2idx must number its words from 0 on, each number once")
    if tuple(words[: len(SPECIALS)]) != SPECIALS:
        raise CapbenchError(f"{path}: word2idx must begin with {', '.join(SPECIALS)}")
    known = tuple(words[len(SPECIALS) :])
    if strange := [word for word in known if word in SPECIAL]:
        raise CapbenchError(f"{path}: the word {strange[0]!r} is one of capbench's own marks")
    return Vocabulary(known, (0,) * len(known))


def has_punkt() -> bool:
    """Whether nltk can split a caption into sentences: its data punkt_tab are installed."""
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def tokens(caption: str) -> list[str]:
    """The words of a caption as data.py has them: "a", "man", "'s", "dog", "."."""
    words: list[str] = nltk.word_tokenize(caption.lower(), preserve_line=not has_punkt())
    return words
