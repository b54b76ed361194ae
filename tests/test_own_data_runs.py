"""Every verb on a tiny data set of one's own: features, training, search, captions, the probe, the page."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from capbench import leaderboard
from capbench.base.errors import CapbenchError
from capbench.cli.app import app
from capbench.data.datasets import load_dataset
from capbench.data.images import without_images
from capbench.evidence.probes import load_probes
from capbench.evidence.records import Result, load_arrays, load_results
from capbench.evidence.results import Results
from capbench.runs import paper as registry
from capbench.runs.loaded import Trained, finished_runs, load_run
from capbench.tools.pictures import look_at
from capbench.tools.search import candidates, captions_of_image, images_of_sentence
from tests.own_data import ENGLISH, RUSSIAN, draw
from tests.test_own_data import JAPANESE, in_karpathys_format

PHOTOGRAPHS = "flickr8k"  # has the recipes that any data set but the scenes has


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder; every paper with the presets of photographs, two epochs of a tiny model."""
    discovered = list(registry.papers().values())

    def small(recipe):
        sizes = {
            name: 16
            for name in ("embedding_dim", "word_dim", "hidden_dim", "attention_dim")
            if getattr(recipe, name, None) is not None
        }
        training = replace(recipe.training, epochs=2, batch_size=8)
        return replace(recipe, **sizes, training=training, warmup=min(recipe.warmup, 1), min_count=1)

    def tiny(paper):
        known = {name: small(recipe) for name, recipe in paper.presets(PHOTOGRAPHS).items()}
        return replace(paper, presets=lambda dataset: known)

    monkeypatch.setattr(registry, "_discover", lambda: map(tiny, discovered))
    monkeypatch.setenv("CAPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def run(*words: str) -> None:
    app(words, exit_on_error=False, print_error=False, result_action="return_value")


def train(paper: str, preset: str, dataset: str) -> tuple[Result, Trained]:
    run("run", paper, "--dataset", dataset, "--preset", preset, "--encoder", "scenes", "--seed", "0")
    (result,) = load_results(Path("runs/records"), paper.replace("-", "_"))
    return result, load_run(finished_runs(Path("runs"))[0])


def test_the_recipes_of_a_data_set_of_ones_own_are_those_of_photographs():
    for paper in registry.papers().values():
        assert paper.presets("my-birds") == paper.presets(PHOTOGRAPHS)
        recipe = paper.presets("my-birds")[paper.headline[0]]
        assert paper.protocols("my-birds", recipe) == paper.protocols(PHOTOGRAPHS, recipe)


def test_a_model_trained_on_a_folder_is_recorded_under_its_name_and_the_command_runs_again(here, capsys):
    draw(here / "own data" / "Birds")
    result, trained = train("vsepp", "vsepp-ours", str(here / "own data" / "Birds"))
    assert (result.dataset, result.published, result.images, result.tokenizer) == ("birds", None, 2, "")
    assert "--dataset './own data/Birds'" in result.command
    for path in Path("runs").rglob("*.json"):
        assert str(here) not in path.read_text(), f"{path} names a folder of this machine"
    capsys.readouterr()
    app(shlex.split(result.command)[1:], exit_on_error=False, print_error=False, result_action="return_value")
    assert "done already" in capsys.readouterr().out
    assert len(list(Path("runs/records").glob("*.json"))) == 1
    board = leaderboard.board(registry.paper("vsepp"), Results.load(Path("runs/records")))
    assert {(row.dataset, row.verdict) for row in board.rows if row.mean is not None} == {("birds", "not reported")}
    page = Path("leaderboards/vsepp.md").read_text()
    assert "## birds, test split, protocol whole" in page
    assert trained.job.dataset == "birds"


@pytest.mark.fault("image that cannot be decoded, in a run that may leave it out")
def test_a_tolerant_run_leaves_out_images_that_cannot_be_decoded_and_records_which(here, capsys):
    draw(here / "birds")
    (here / "birds" / "images" / "2.png").write_bytes(b"<html>no picture</html>")
    words = ["run", "vsepp", "--preset", "vsepp-ours", "--dataset", "birds", "--encoder", "scenes", "--seed", "0"]
    with pytest.raises(CapbenchError, match=r"2\.png holds HTML or XML and no picture"):
        run(*words)
    assert not (here / "runs" / "vsepp").exists()
    with pytest.warns(UserWarning, match=r"1 images of birds could not be decoded and have no features: 2\.png"):
        run(*words, "--tolerant")
    (result,) = load_results(Path("runs/records"))
    assert "1 images left out, not decodable: 2.png" in result.notes[0]
    assert result.notes[-1] == "left out, not decodable: 2.png"
    assert result.command.endswith(" --dataset ./birds --encoder scenes --seed 0 --tolerant")
    whole = load_dataset("birds")
    assert result.dataset_fingerprint != whole.fingerprint
    trained = load_run(finished_runs(Path("runs"))[0])
    assert trained.job.dataset == "birds"


def test_images_left_out_take_their_captions_along(here):
    draw(here / "birds")
    whole = load_dataset("birds")
    less = without_images(whole, ("2.png", "9.png"))
    kept = [i for i in range(12) if i not in (2, 9)]
    assert less.image_names == tuple(f"{i}.png" for i in kept)
    assert less.splits == whole.splits
    pairs = [
        (whole.image_names[i], c) for i, c in zip(whole.image_of_caption, whole.captions, strict=True) if i in kept
    ]
    assert [(less.image_names[i], c) for i, c in zip(less.image_of_caption, less.captions, strict=True)] == pairs
    assert (less.images[2] == whole.images[3]).all()


def test_a_registered_data_set_of_a_name_that_a_paper_reports_is_never_judged(here):
    run("datasets", "add", "pascal", str(draw(here / "birds")))
    result, _ = train("show-and-tell", "nic-ours", "pascal")
    paper = registry.paper("show_and_tell")
    assert "pascal" in {number.dataset for number in paper.reported}
    assert result.command.endswith("--dataset pascal --encoder scenes --seed 0")
    board = leaderboard.board(paper, Results.load(Path("runs/records")))
    assert not [match for match in board.matches if match.runs]


@pytest.mark.parametrize(
    ("captions", "query", "odd"),
    [(RUSSIAN, "КРАСНЫЙ квадрат!", "зебра"), (JAPANESE, "赤い四角", "鹿")],
    ids=["Russian", "Japanese"],
)
def test_sentences_in_other_letters_are_searched_and_unknown_words_told(here, captions, query, odd, capsys):
    draw(here / "birds", captions)
    _, trained = train("vsepp", "vsepp-ours", "birds")
    assert trained.vocabulary.tokenizer == "unicode"
    seen = look_at(trained, Path("birds/images"))
    known = images_of_sentence(trained, query, seen, 3)
    assert (known.unknown, len(known.pictures)) == ((), 3)
    assert images_of_sentence(trained, f"{query} {odd}", seen, 3).unknown == (odd,)
    with pytest.raises(CapbenchError, match=f"knows no word of '{odd}'"):
        trained.read(odd)
    with pytest.raises(CapbenchError, match=r"no word with a letter or a digit"):
        trained.read("…!")
    lines = candidates(trained, [query, odd], "the list")
    ranked = captions_of_image(trained, look_at(trained, Path("birds/images/0.png")), lines, 5)
    assert ([line for line, _ in ranked.captions], ranked.unknown) == ([query], (odd,))


@pytest.mark.fault("split file whose tokens have capitals")
def test_a_query_finds_the_words_of_a_split_file_whose_tokens_have_capitals(here):
    draw(here / "source")
    (here / "birds").mkdir()
    in_karpathys_format(here / "birds" / "dataset.json", here / "source", lambda raw: raw.replace(".", " .").split())
    (here / "source" / "images").rename(here / "birds" / "images")
    _, trained = train("vsepp", "vsepp-ours", "birds")
    assert {"A", "This", "."} <= set(trained.vocabulary.words)
    red, blue = (trained.read(f"a {colour} square, zebra") for colour in ("red", "blue"))
    assert trained.vocabulary.decode(red.numbers) == ["A", "red", "square,", "<unknown>"]
    assert (red.unknown, blue.unknown) == (("zebra",), ("zebra",))
    assert red.numbers != blue.numbers


def novelty_by_hand(written: Sequence[str], training: Sequence[str]) -> float:
    def letters(text: str) -> str:
        return re.sub(r"[^\w]", "", text.casefold())

    known = set(map(letters, training))
    return 100 * sum(letters(text) not in known for text in written) / len(written)


@pytest.mark.parametrize("captions", [ENGLISH, RUSSIAN], ids=["English", "Russian"])
@pytest.mark.parametrize(
    ("paper", "preset"), [("show-and-tell", "nic-ours"), ("show-attend-tell", "soft-ours"), ("karpathy", "brnn-ours")]
)
def test_every_kind_of_model_trains_on_data_of_ones_own(here, captions, paper, preset):
    draw(here / "birds", captions)
    result, trained = train(paper, preset, "birds")
    assert result.dataset == "birds"
    if "bleu4" not in result.metrics:
        assert "rsum" in result.metrics
        return
    arrays = load_arrays(result, Path("runs/records"))
    written = [" ".join(trained.vocabulary.decode(words)) for words in arrays["captions"][:, 0].tolist()]
    training = load_dataset("birds").split("train").captions
    assert result.metrics["novelty"] == pytest.approx(novelty_by_hand(written, training))
    assert result.tokenizer == ("" if captions is ENGLISH else "unicode")
    board = leaderboard.board(registry.paper(paper), Results.load(Path("runs/records")))
    (rule,) = {row.rule for row in board.rows if row.metric == "bleu4" and row.dataset == "birds"}
    assert rule == ("coco-caption" if captions is ENGLISH else "coco-caption, tokeniser unicode")
    run("caption", "birds/images/0.png", "--out", "captions.json")
    assert json.loads(Path("captions.json").read_text())


def test_features_and_the_probe_take_a_folder(here, capsys):
    draw(here / "birds", splits=("train",) * 8 + ("val",) * 4 + ("test",) * 4)
    run("features", "birds/", "--encoder", "scenes")
    assert capsys.readouterr().out.startswith("(16, 512) float32")
    run("probe", "scenes", "--dataset", "./birds", "--out", "probes")
    (record,) = load_probes(Path("probes"))
    assert record.dataset == "birds"
    assert record.command == "capbench probe scenes --dataset ./birds --view whole --images 8"
