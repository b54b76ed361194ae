"""The names of schema 1, read as those of today.

Committed records are never rewritten. A record or a run.json of schema 1 is renamed here when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What "crop" named in schema 1 where a model saw regions.
PROVIDERS = (
    *("multiscale", "objects", "file", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn"),
    *("fasterrcnn_mobilenet_v3_large_fpn", "retinanet_resnet50_fpn_v2"),
)

PRESETS: Mapping[str, Mapping[str, str]] = {
    "karpathy": {
        "brnn-published": "brnn", "brnn": "brnn-ours", "sum-form": "sum-form-ours", "bag": "bag-ours",
        "window": "window-ours", "brnn-vectors": "brnn-vectors-ours", "brnn-detector": "brnn-detector-ours",
        "brnn-file": "brnn-file-ours", "rnn-published": "rnn", "rnn": "rnn-ours", "rnn-regions": "rnn-regions-ours",
        "lstm": "lstm-ours",
    },
    "show_and_tell": {"sgd": "nic", "adam": "nic-ours", "adam-ensemble": "nic-ensemble-ours"},
    "show_attend_tell": {
        "soft-rmsprop": "soft", "hard-rmsprop": "hard", "soft": "soft-ours", "hard": "hard-ours", "none": "none-ours",
    },
    "vsepp": {
        "vse0-small": "vse0-ours", "vsepp-small": "vsepp-ours",
        **{f"vsepp-negatives-{size}": f"vsepp-negatives-{size}-ours" for size in (1, 4, 16, 64)},
    },
}  # fmt: skip

FIELDS: Mapping[str, Mapping[str, str]] = {
    "training": {
        "average": "ema_decay", "plateau": "lr_patience", "decay_every": "lr_step_epochs", "decay": "lr_decay",
    },
    "any paper": {
        "start_from": "init_from", "members": "ensemble_size", "embedding": "embedding_dim", "hidden": "hidden_dim",
        "word": "word_dim",
    },
    "karpathy": {"keep": "recurrent_init", "vectors": "word_vectors"},
    "vsepp": {"keep_bias": "update_gate_bias"},
}  # fmt: skip

# Fields that every recipe has since schema 2, with what they were before.
ADDED: Mapping[str, Any] = {"region_provider": None, "ensemble_size": 1, "warmup": 0, "metric": None, "finetune": False}
# What VSE++ did before its recipes said so.
VSEPP_ADDED: Mapping[str, Any] = {"batches": "length_grouped", "same_image_negatives": False}


def preset(paper: str, name: str) -> str:
    """Today's name of a preset of schema 1.

    >>> preset("karpathy", "brnn"), preset("vsepp", "vse0")
    ('brnn-ours', 'vse0')
    """
    return PRESETS.get(paper, {}).get(name, name)


def recipe(paper: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of schema 1 under today's names; an empty one stays empty."""
    if not fields:
        return {}
    names = {**FIELDS["any paper"], **FIELDS.get(paper, {})}
    renamed = _renamed(names, fields)
    if isinstance(renamed.get("training"), Mapping):
        renamed["training"] = _renamed(FIELDS["training"], renamed["training"])
    if renamed.get("init_from"):
        renamed["init_from"] = preset(paper, renamed["init_from"])
    if paper == "show_and_tell":
        renamed = {"im2txt": False, **renamed}
        renamed.pop("keep_bias", None)  # of the forget gate, as today where it was not 0
    if paper == "vsepp":
        renamed = {**VSEPP_ADDED, **renamed}
        if not renamed.pop("normalise_images", True) and renamed.get("similarity") == "cosine":
            renamed["similarity"] = "dot"
    return {**ADDED, **renamed}


def record(document: Mapping[str, Any]) -> dict[str, Any]:
    """A record of schema 1 under today's names."""
    paper = document.get("paper", "")
    renamed = _renamed({}, document)
    if "preset" in document:
        renamed["preset"] = preset(paper, document["preset"])
    if isinstance(document.get("recipe"), Mapping):
        renamed["recipe"] = recipe(paper, document["recipe"])
    if document.get("energy_joules") is not None:
        renamed["energy_of"] = "CPU package"  # no other was counted
    return renamed


def _renamed(names: Mapping[str, str], fields: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {names.get(name, name): value for name, value in fields.items() if name != "crop"}
    return renamed | (crop(fields["crop"]) if "crop" in fields else {})


def crop(name: str) -> dict[str, str | None]:
    """What schema 1 called the crop: a view of the image, or the provider of its regions.

    >>> crop("10C"), crop("objects")
    ({'view': '10C', 'region_provider': None}, {'view': 'whole', 'region_provider': 'objects'})
    """
    is_provider = name in PROVIDERS
    return {"view": "whole" if is_provider else name, "region_provider": name if is_provider else None}
