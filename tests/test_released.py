"""Released checkpoints: files in the layouts that the authors' code saves, read, scored and refused.

The oracles compute the released models' equations in float64, from the names in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import shlex
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.captioners.experiment import caption_images
from capbench.cli.app import app
from capbench.data.batches import padded
from capbench.data.datasets import load_dataset
from capbench.data.scenes import scenes
from capbench.evidence.records import load_arrays, load_results
from capbench.evidence.results import Results
from capbench.leaderboard.board import board
from capbench.leaderboard.pooled import marks
from capbench.runs import importing
from capbench.runs.loaded import load_run
from capbench.runs.paper import paper
from capbench.runs.released import load_checkpoint
from capbench.site.gallery import unseen
from capbench.site.gallery.finding import SEARCH, galleries
from capbench.vision.encoders import Encoder
from capbench.vision.features import features
from reproductions.vsepp.released import cnn_of

ROOT = Path(__file__).resolve().parents[1]
FEW = scenes(seed=5, train=30, val=5, test=12)
DIM, EMBED, WORD = 512, 16, 8  # of the scenes' encoder, of the space, of a word


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder, where every data set is a few scenes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("capbench.runs.materials.load_dataset", lambda name: FEW)
    return tmp_path


def split_words(text: str) -> list[str]:
    """Words and marks apart, as nltk has them in text without contractions."""
    return re.findall(r"[a-z0-9-]+|[.,!?]", text.lower())


def vse_words() -> dict[str, int]:
    words = sorted({word for caption in FEW.captions for word in split_words(caption)})[::2]  # half are unknown
    return {word: i for i, word in enumerate(["<pad>", "<start>", "<end>", "<unk>", *words])}


def options(**changes: Any) -> argparse.Namespace:
    """What train.py saves as opt."""
    given = {
        "data_path": "data", "data_name": "f8k_precomp", "vocab_path": "vocab", "margin": 0.2, "num_epochs": 30,
        "batch_size": 128, "word_dim": WORD, "embed_size": EMBED, "grad_clip": 2.0, "crop_size": 224, "num_layers": 1,
        "learning_rate": 0.0002, "lr_update": 15, "workers": 10, "log_step": 10, "val_step": 500,
        "logger_name": "runs/x", "resume": "", "max_violation": True, "img_dim": DIM, "finetune": False,
        "cnn_type": "vgg19", "use_restval": False, "measure": "cosine", "use_abs": False, "no_imgnorm": False,
        "vocab_size": len(vse_words()),
    }  # fmt: skip
    return argparse.Namespace(**(given | changes))


def vse_states(layers: int = 1, feature_dim: int = DIM) -> list[dict[str, Tensor]]:
    torch.manual_seed(3)
    text = {"embed.weight": torch.randn(len(vse_words()), WORD)}
    text |= {f"rnn.{name}": value.detach() for name, value in torch.nn.GRU(WORD, EMBED, layers).named_parameters()}
    return [{"fc.weight": torch.randn(EMBED, feature_dim), "fc.bias": torch.randn(EMBED)}, text]


def write_vse(folder: Path, states: Any = None, opt: Any = None, **torch_options: Any) -> Path:
    path = folder / "model_best.pth.tar"
    content = {"epoch": 12, "model": states or vse_states(), "best_rsum": np.float64(123.4), "opt": opt or options()}
    torch.save(content | {"Eiters": 4000}, path, **torch_options)
    write_words(folder)
    return path


def write_words(folder: Path, **changes: Any) -> None:
    numbers = vse_words() | changes
    vocabulary = {"word2idx": numbers, "idx2word": {str(i): w for w, i in numbers.items()}, "idx": len(numbers)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))


def command(*words: str) -> None:
    app(["import", *words], exit_on_error=False, print_error=False, result_action="return_value")


VSE = ("vsepp", "model_best.pth.tar", "--vocabulary", "vocab.json", "--dataset", "scenes", "--encoder", "scenes")


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows**2).sum(-1, keepdims=True))


def vse_caption(text: dict[str, Tensor], caption: str) -> np.ndarray:
    """The last state of the GRU over <start>, the words and <end>."""
    W = {name: value.double().numpy() for name, value in text.items()}  # noqa: N806 (weights)
    numbers = vse_words()
    state = np.zeros(EMBED)
    for word in ["<start>", *split_words(caption), "<end>"]:
        x = W["embed.weight"][numbers.get(word, numbers["<unk>"])]
        a = np.split(W["rnn.weight_ih_l0"] @ x + W["rnn.bias_ih_l0"], 3)
        b = np.split(W["rnn.weight_hh_l0"] @ state + W["rnn.bias_hh_l0"], 3)
        reset, update = (1 / (1 + np.exp(-(a[i] + b[i]))) for i in (0, 1))
        state = (1 - update) * np.tanh(a[2] + reset * b[2]) + update * state
    return state


def vse_scores(states: list[dict[str, Tensor]], opt: argparse.Namespace, phi: np.ndarray) -> np.ndarray:
    """Similarities [image, caption] of the test split by model.py's equations."""
    fc = states[0]["fc.weight"].double().numpy(), states[0]["fc.bias"].double().numpy()
    images = unit(phi.astype(np.float64)) @ fc[0].T + fc[1]
    images = images if opt.no_imgnorm else unit(images)
    captions = unit(np.stack([vse_caption(states[1], caption) for caption in FEW.split("test").captions]))
    if opt.use_abs:
        images, captions = np.abs(images), np.abs(captions)
    if opt.measure == "order":
        return -np.sqrt((np.maximum(captions[None] - images[:, None], 0) ** 2).sum(-1))
    return images @ captions.T


def ranks(scores: np.ndarray) -> tuple[list[int], list[int]]:
    """How many wrong captions are before an image's best right one, and wrong images before a caption's; ties count."""
    own = FEW.split("test").image_of_caption[None] == np.arange(len(scores))[:, None]
    best = np.where(own, scores, -np.inf).max(1, keepdims=True)
    right = scores.max(0, where=own, initial=-np.inf)[None]
    return ((scores >= best) & ~own).sum(1).tolist(), ((scores >= right) & ~own).sum(0).tolist()


MEASURES: dict[str, dict[str, Any]] = {
    "released-vsepp": {},
    "released-vse0": {"max_violation": False, "no_imgnorm": True},
    "released-order0": {"max_violation": False, "measure": "order", "use_abs": True, "margin": 0.05},
    "released-orderpp": {"measure": "order"},
}


@pytest.mark.parametrize("preset", MEASURES)
def test_a_checkpoint_is_scored_as_its_own_equations_score_it(here, preset):
    opt, states = options(**MEASURES[preset]), vse_states()
    write_vse(here, states, opt)
    command(*VSE, "--record")
    (record,) = load_results(here / "runs" / "records")
    arrays = load_arrays(record, here / "runs" / "records")
    rows = FEW.split("test").image_index
    scores = vse_scores(states, opt, features(FEW, Encoder("scenes")).array[rows])
    image_to_caption, caption_to_image = ranks(scores)
    assert arrays["image_to_caption"].tolist() == image_to_caption
    assert arrays["caption_to_image"].tolist() == caption_to_image
    assert record.metrics["image_to_caption_r5"] == pytest.approx(100 * np.mean(np.array(image_to_caption) < 5))
    assert record.preset == preset
    assert record.recipe["margin"] == opt.margin
    assert record.dataset_fingerprint == FEW.fingerprint
    notes = " ".join(record.notes)
    assert "released weights, not trained by capbench: model_best.pth.tar, SHA-256 " in notes
    assert "github.com/fartashf/vsepp, trained on f8k_precomp, epoch 12, best_rsum 123.4" in notes
    assert record.command == f"capbench import {shlex.join(VSE)} --record"


def test_a_record_of_released_weights_is_shown_and_never_judged(here):
    write_vse(here)
    command(*VSE, "--record")
    results = Results.load(here / "runs" / "records", "vsepp")
    shown = board(paper("vsepp"), results)
    assert [runs.first.preset for runs in shown.runs] == ["released-vsepp"]
    assert all(match.runs is None for match in shown.matches)
    assert "released weights, not trained by capbench" in marks(results.records[0], paper("vsepp"))
    assert "released-vsepp" in (here / "leaderboards" / "vsepp.md").read_text()


def test_an_imported_run_is_found_and_used_by_search(here, capsys):
    write_vse(here)
    command(*VSE)
    app(["datasets", "export", "scenes", "pictures", "--images", "3"], result_action="return_value")
    capsys.readouterr()
    app(["search", "a red circle", "--images", "pictures"], result_action="return_value")
    assert "vsepp released-vsepp on scenes" in capsys.readouterr().out


@pytest.mark.parametrize("more", [(), ("--record",)])
def test_an_imported_run_has_a_gallery(here, monkeypatch, more):
    monkeypatch.setattr(unseen, "load_dataset", lambda name: FEW)
    write_vse(here)
    command(*VSE, *more)
    reasons: list[str] = []
    (gallery,) = galleries(here / "runs", here / "none", 4, reasons.append)
    assert (gallery.kind, gallery.record is not None, reasons) == (SEARCH, bool(more), [])
    monkeypatch.setattr(unseen, "load_dataset", lambda name: scenes(seed=6, train=30, val=5, test=12))
    found = galleries(here / "runs", here / "none", 4, reasons.append)
    assert ([], "has changed since; import it again" in reasons[0]) == (found, True) if more else len(found) == 1


def test_without_record_neither_data_nor_weights_are_needed_and_the_file_says_its_data_and_encoder(here):
    write_vse(here, vse_states(feature_dim=2048), options(img_dim=2048, data_name="10crop_precomp"))
    command(*VSE[:4])
    trained = load_run(here / "runs" / "vsepp" / "released-vsepp-coco-resnet152-s0")
    assert trained.recipe.view == "10C"
    assert not (here / "runs" / "records").exists()


def test_a_checkpoint_is_scored_on_a_folder_of_ones_own(here, monkeypatch):
    monkeypatch.setattr("capbench.runs.materials.load_dataset", load_dataset)
    app(["datasets", "export", "scenes", "pictures", "--images", "3"], result_action="return_value")
    write_vse(here)
    command(*VSE[:4], "--dataset", "./pictures", "--encoder", "scenes", "--record")
    (record,) = load_results(here / "runs" / "records")
    assert (record.dataset, record.images) == ("pictures", 3)
    assert "--dataset ./pictures" in record.command
    assert load_run(here / "runs" / "vsepp" / "released-vsepp-pictures-scenes-s0").job.dataset == "pictures"


PURE: Any = vars(pickle)["_Pickler"]  # in Python, so that it can be changed


def old_string(pickler: Any, value: str | bytes) -> None:
    """Text and bytes as Python 2 wrote both."""
    data = value.encode("latin1") if isinstance(value, str) else value
    pickler.write(b"U" + bytes([len(data)]) + data)
    pickler.memoize(value)


def old_global(pickler: Any, value: Any, name: str | None = None) -> None:
    """numpy's numbers under the module of old."""
    if getattr(value, "__name__", "") == "scalar":
        pickler.write(b"cnumpy.core.multiarray\nscalar\n")
        pickler.memoize(value)
    else:
        PURE.save_global(pickler, value, name)


WRITERS: dict[type, Any] = {str: old_string, bytes: old_string}
WRITERS |= dict.fromkeys((types.BuiltinFunctionType, types.FunctionType, type), old_global)
OldPickler: Any = type("OldPickler", (PURE,), {"dispatch": PURE.dispatch | WRITERS, "save_global": old_global})
OLD: Any = types.SimpleNamespace(
    __name__="old", Pickler=OldPickler, dump=lambda value, file, protocol: OldPickler(file, protocol).dump(value)
)


@pytest.mark.parametrize("written", [{}, {"pickle_module": OLD}], ids=["Python 3", "Python 2"])
def test_a_file_from_before_torch_wrote_archives_is_read(tmp_path, written):
    path = write_vse(tmp_path, _use_new_zipfile_serialization=False, **written)
    assert not path.read_bytes().startswith(b"PK")
    read = load_checkpoint(path)
    assert read["best_rsum"] == pytest.approx(123.4)
    assert vars(read["opt"]) == vars(options())
    for there, expected in zip(read["model"], vse_states(), strict=True):
        assert {name: value.tolist() for name, value in there.items()} == {n: v.tolist() for n, v in expected.items()}


def test_a_network_saved_with_the_model_makes_the_features(here, monkeypatch):
    torch.manual_seed(1)
    network: Any = torchvision.models.resnet50().eval()
    cnn = {f"cnn.module.{name}": value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    states = vse_states(feature_dim=2048)
    write_vse(here, [states[0] | cnn, states[1]], options(data_name="f8k", cnn_type="resnet50", finetune=True))
    monkeypatch.setattr("capbench.runs.materials.load_dataset", lambda name: scenes(seed=5, train=1, val=1, test=2))
    command(*VSE[:4], "--record")
    assert load_results(here / "runs" / "records")[0].encoder == "resnet50"
    trained = load_run(here / "runs" / "vsepp" / "released-vsepp-flickr8k-resnet50-s0")
    pixels = torch.randint(0, 255, (2, 3, 224, 224), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = network((pixels / 255 - mean) / std)
    assert torch.allclose(trained.encoder(pixels), expected, atol=1e-4 * float(expected.max()))
    with pytest.raises(CapbenchError, match="holds a resnet50 of its own; leave out --encoder scenes"):
        command(*VSE, "--name", "other")


@pytest.mark.parametrize("places", [(0, 3), (1, 4)], ids=["today's names", "names before torchvision moved dropout"])
def test_a_vgg_saved_with_the_model_gets_torchvisions_names(places):
    saved = {"cnn.features.module.28.weight": torch.tensor(1.0)}
    saved |= {f"cnn.classifier.{place}.bias": torch.tensor(float(place)) for place in places}
    saved |= {f"cnn.classifier.{place}.weight": torch.tensor(float(place)) for place in places}
    named = cnn_of("vgg19", saved, 4096, Path("x"))
    assert {name: value.shape for name, value in named.items() if value.dim()} == {
        "classifier.6.weight": (1000, 4096),
        "classifier.6.bias": (1000,),
    }
    expected = {"features.28.weight": 1.0}
    expected |= {
        f"classifier.{now}.{kind}": p for now, p in zip((0, 3), places, strict=True) for kind in ("weight", "bias")
    }
    assert {name: float(value) for name, value in named.items() if not value.dim()} == expected


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.fault("checkpoint that would run code")
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(here):
    write_vse(here, opt=Evil())
    with pytest.raises(CapbenchError, match=r"is refused: .* could run code \(it asks for posix.mkdir"):
        command(*VSE)
    assert not (here / "executed").exists()
    assert not (here / "runs").exists()


def changed(**tensors: Tensor | None) -> list[dict[str, Tensor]]:
    states = vse_states()
    for name, value in tensors.items():
        table = states[0] if name.startswith(("fc", "cnn")) else states[1]
        name = name.replace("__", ".")
        table.pop(name, None)
        if value is not None:
            table[name] = value
    return states


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "two layers": (vse_states(layers=2), None, r"no caption encoder of VSE\+\+ .*: it has rnn.bias_hh_l1"),
    "no projection": (changed(fc__bias=None), None, r"no image encoder of VSE\+\+: it lacks fc.bias"),
    "a list of one": ([{}], None, r"has not the layout of vsepp's train.py: model \(a list of two\) and opt"),
    "no tensors": ([{"fc.weight": 3}, {}], None, r"model\[0\] is no table of tensors"),
    "not finite": (changed(fc__bias=torch.full((EMBED,), torch.nan)), None, r"model\[0\] .* fc.bias .* not finite"),
    "shape": (changed(fc__bias=torch.zeros(3)), None, r"model_best.pth.tar .* of another shape .*W_f.bias \[3\]"),
    "flat": (changed(fc__weight=torch.zeros(EMBED)), None, r"no image encoder .*: fc.weight has 1 dimensions, not 2"),
    "a lone number": (changed(embed__weight=torch.tensor(1.0)), None, r"embed.weight has 0 dimensions, not 2"),
    "vast": (changed(fc__weight=torch.zeros(1).expand(EMBED, 10**8)), None, "larger than the file"),
    "measure": (None, options(measure="l2"), "measure 'l2' with no_imgnorm False is none of ours"),
    "sparse": (changed(fc__bias=torch.ones(EMBED).to_sparse()), None, r"model\[0\] has fc.bias empty, sparse, complex"),
    "complex": (changed(fc__bias=torch.ones(EMBED) * 1j), None, r"model\[0\] has fc.bias empty, sparse, complex"),
    "empty": (changed(fc__weight=torch.ones(EMBED, 0)), None, r"model\[0\] has fc.weight empty, sparse, complex"),
    "endless": (None, options(num_epochs=float("inf")), "opt has a value of another kind: cannot convert float inf"),
    "a flag in words": (None, options(max_violation="False"), "another kind: max_violation is 'False', neither True"),
    "margin": (None, options(margin="wide"), "opt has a value of another kind: .*'wide'"),
    "words": (changed(embed__weight=torch.zeros(5, WORD)), None, r"vocab.json has \d+ words, and \S+ knows 5"),
    "a network": (changed(cnn__x=torch.zeros(1)), options(cnn_type="inception"), "holds a network inception; only"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_no_model_of_ours_is_refused_with_the_reason_and_nothing_is_written(here, fault):
    states, opt, message = REFUSED[fault]
    write_vse(here, states, opt)
    before = sorted(here.iterdir())
    with pytest.raises(CapbenchError, match=message):
        command(*VSE)
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 3}, "must number its words from 0 on, each number once"),
        ({"<start>": 2, "<end>": 1}, "must begin with <pad>, <start>, <end>, <unk>"),
        ({"<unknown>": len(vse_words())}, "'<unknown>' is one of capbench's own marks"),
    ],
)
def test_a_vocabulary_of_another_layout_is_refused(here, changes, message):
    write_vse(here)
    write_words(here, **changes)
    with pytest.raises(CapbenchError, match=f"vocab.json: .*{message}"):
        command(*VSE)


@pytest.mark.fault("pickled vocabulary of older projects")
def test_a_pickled_vocabulary_is_refused_with_a_line_that_converts_it(here):
    write_vse(here)
    (here / "vocab.json").rename(here / "theirs.json")
    vocabulary = types.SimpleNamespace(**json.loads((here / "theirs.json").read_text()))
    (here / "vocab.pkl").write_bytes(pickle.dumps(vocabulary, 2))
    with pytest.raises(CapbenchError, match=r"vocab.pkl is a pickle, .* refused") as refused:
        command(*VSE[:3], "vocab.pkl")
    (program,) = re.findall(r'python -c "(.*)"', str(refused.value))
    exec(program, {})  # the line that the message gives, in the folder of the pickle
    assert json.loads((here / "vocab.json").read_text()) == vars(vocabulary)


def test_an_encoder_of_another_dimension_is_refused_before_anything_is_written(here):
    write_vse(here, vse_states(feature_dim=100))
    with pytest.raises(CapbenchError, match=r"takes vectors of 100, and scenes gives 512; .*--encoder"):
        command(*VSE, "--record")
    assert not (here / "runs").exists()


def test_another_checkpoint_needs_another_name_and_the_same_one_does_not(here):
    write_vse(here)
    command(*VSE)
    command(*VSE)
    write_vse(here, changed(fc__bias=torch.ones(EMBED)))
    with pytest.raises(CapbenchError, match=r"scenes-s0 holds the run of another checkpoint; .*--name"):
        command(*VSE)
    command(*VSE, "--name", "mine")
    assert load_run(here / "runs" / "vsepp" / "released-mine-scenes-scenes-s0").job.preset == "released-mine"
    with pytest.raises(CapbenchError, match=r"--name '\.\./x'"):
        command(*VSE, "--name", "../x")


def test_a_paper_without_a_reader_names_those_that_have_one(here):
    with pytest.raises(CapbenchError, match=r"no released checkpoint of karpathy; .* those of show_and_tell, vsepp"):
        command("karpathy", *VSE[1:])


def test_a_missing_file_is_named(here):
    write_words(here)
    with pytest.raises(CapbenchError, match=r"there is no checkpoint model_best\.pth\.tar"):
        command(*VSE)


# --- ruotianluo/ImageCaptioning.pytorch ---

CAPTION_WORDS = ["a", "red", "UNK", "circle", "blue", "square"]


def tell_state(layers: int = 1, words: int = len(CAPTION_WORDS)) -> dict[str, Tensor]:
    torch.manual_seed(4)
    core = torch.nn.LSTM(7, 9, layers, bias=False)
    return {f"core.{name}": value.detach() for name, value in core.named_parameters()} | {
        "img_embed.weight": torch.randn(7, DIM),
        "img_embed.bias": torch.randn(7),
        "embed.weight": torch.randn(words + 1, 7),
        "logit.weight": 3 * torch.randn(words + 1, 9),
        "logit.bias": torch.randn(words + 1),
    }


def write_tell(folder: Path, state: Any = None, words: Any = None, **opt: Any) -> None:
    torch.save(state or tell_state(), folder / "model.pth")
    words = words or {str(i): word for i, word in enumerate(CAPTION_WORDS, 1)}
    infos = {"vocab": words, "opt": {"caption_model": "show_tell", "rnn_type": "lstm"} | opt}
    (folder / "infos.json").write_text(json.dumps(infos))


TELL = ("show-and-tell", "model.pth", "--vocabulary", "infos.json", "--dataset", "scenes", "--encoder", "scenes")


class Released:
    """The released model, step by step: 0 begins and ends a caption."""

    def __init__(self, state: dict[str, Tensor], image: np.ndarray) -> None:
        self.W = {name: value.double().numpy() for name, value in state.items()}
        self.hidden = self.memory = np.zeros(9)
        self.step(self.W["img_embed.weight"] @ image + self.W["img_embed.bias"])

    def step(self, x: np.ndarray) -> np.ndarray:
        gates = self.W["core.weight_ih_l0"] @ x + self.W["core.weight_hh_l0"] @ self.hidden
        i, f, g, o = np.split(gates, 4)
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        self.memory = f * self.memory + i * np.tanh(g)
        self.hidden = o * np.tanh(self.memory)
        scores = self.W["logit.weight"] @ self.hidden + self.W["logit.bias"]
        return scores - np.log(np.exp(scores).sum())

    def word(self, number: int) -> np.ndarray:
        return self.step(self.W["embed.weight"][number])


def test_a_show_tell_model_gives_its_words_the_released_probabilities(here):
    write_tell(here)
    command(*TELL)
    trained: Any = load_run(here / "runs" / "show_and_tell" / "released-show_tell-scenes-scenes-s0")
    image = np.random.default_rng(0).random(DIM).astype(np.float32) / 8
    sentence = ["blue", "square", "nowhere", "a"]
    theirs = [CAPTION_WORDS.index(word if word in CAPTION_WORDS else "UNK") + 1 for word in sentence]
    model = Released(tell_state(), image)
    expected = [model.word(before)[after] for before, after in zip([0, *theirs], [*theirs, 0], strict=True)]
    ids, _ = padded([trained.vocabulary.encode(sentence)])
    with torch.no_grad():
        log_probs = trained.model(torch.from_numpy(image)[None], ids).log_softmax(-1)[0]
    assert log_probs[range(5), ids[0, 1:]].tolist() == pytest.approx(expected, abs=1e-5)
    assert float(log_probs[:, :2].exp().max()) == 0  # padding and the beginning are never written


def test_a_show_tell_model_writes_the_caption_that_the_released_one_writes(here):
    write_tell(here)
    command(*TELL)
    trained: Any = load_run(here / "runs" / "show_and_tell" / "released-show_tell-scenes-scenes-s0")
    images = np.random.default_rng(1).random((6, DIM)).astype(np.float32) / 8
    with torch.no_grad():
        written = caption_images(trained.model, torch.from_numpy(images), beam_size=1).words[:, 0]
    captions = []
    for image in images:
        model, number = Released(tell_state(), image), 0
        words: list[str] = []
        while len(words) < written.shape[1]:
            number = int(model.word(number).argmax())
            if number == 0:
                break
            words.append(CAPTION_WORDS[number - 1].replace("UNK", "<unknown>"))
        captions.append(words)
    assert [trained.vocabulary.decode(row.tolist()) for row in written] == captions
    assert len({tuple(words) for words in captions}) > 1


TELL_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"caption_model": "att2in"}, "infos.json is of a model 'att2in'; only show_tell"),
    "two layers": ({"state": tell_state(layers=2)}, "no show_tell model .*: it has core.weight_hh_l1"),
    "another core": (
        {"state": tell_state() | {"core.weight_hh_l0": torch.zeros(27, 9)}}, "core of another kind than an LSTM",
    ),
    "flat": ({"state": tell_state() | {"img_embed.weight": torch.tensor(1.0)}}, "img_embed.weight has 0 dimensions"),
    "words": ({"state": tell_state(words=3)}, "infos.json has 6 words, and model.pth knows 3"),
    "numbers": ({"words": {"0": "a"}}, "vocab must number its words from 1 on"),
    "marks": ({"words": {str(i): f"<{w}>" for i, w in enumerate(["pad", *"abcde"], 1)}}, "'<pad>' is one of capbench"),
}  # fmt: skip


@pytest.mark.parametrize("fault", TELL_REFUSED)
def test_what_is_no_show_tell_model_is_refused_with_the_reason(here, fault):
    given, message = TELL_REFUSED[fault]
    write_tell(here, **given)
    with pytest.raises(CapbenchError, match=message):
        command(*TELL)
    assert not (here / "runs").exists()


def test_pickled_infos_are_refused_with_a_line_that_converts_them(here):
    write_tell(here)
    infos = json.loads((here / "infos.json").read_text())
    (here / "infos.json").unlink()
    (here / "infos.pkl").write_bytes(pickle.dumps(infos | {"opt": argparse.Namespace(**infos["opt"])}, 2))
    with pytest.raises(CapbenchError, match=r"infos.pkl is a pickle, .* refused") as refused:
        command(*TELL[:3], "infos.pkl")
    (program,) = re.findall(r'python -c "(.*)"', str(refused.value))
    exec(program, {})
    command(*TELL)


def test_the_examples_of_the_readme_run_as_they_stand(here, monkeypatch):
    section = (ROOT / "README.md").read_text("utf-8").partition("## Released checkpoints")[2].partition("\n## ")[0]
    lines = re.findall(r"^capbench .*$", section, re.M)
    assert len(lines) == 2
    write_vse(here)
    write_tell(here)
    monkeypatch.setattr(importing, "encoder_on_device", lambda name, output, weights: Encoder("scenes", output))
    for line in lines:
        app(shlex.split(line, comments=True)[1:], exit_on_error=False, print_error=False, result_action="return_value")
    assert {record.paper for record in load_results(here / "runs" / "records")} == {"vsepp"}
    assert (here / "runs" / "show_and_tell" / "released-show_tell-coco-resnet101-s0").is_dir()
