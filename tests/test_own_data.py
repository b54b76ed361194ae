"""A data set of one's own: read, refused, registered."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from capbench.base.errors import CapbenchError
from capbench.cli.app import app
from capbench.data.captions import protocol_line
from capbench.data.checking import check
from capbench.data.datasets import check_trainable, describe, is_published, load_dataset
from capbench.data.folders import read_own
from capbench.data.registered import KNOWN, Own, find, register, registered, unregister
from capbench.metrics.captioning import CaptionScorer
from tests.own_data import ENGLISH, RUSSIAN, SPLITS, draw, write_table


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder with the data set `birds`, and a configuration of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    draw(Path("birds"))
    return tmp_path / "work"


def named(given: str) -> Own:
    own = find(given)
    assert own is not None
    return own


def run(*words: str) -> None:
    app(words, exit_on_error=False, print_error=False, result_action="return_value")


def in_karpathys_format(path: Path, folder: Path, tokens) -> None:
    """The data set of `folder` as a split file, its tokens made by a function of the raw caption."""
    dataset = load_dataset(str(folder))
    images = []
    for image, (name, split) in enumerate(zip(dataset.image_names, dataset.split_of_image, strict=True)):
        own = [i for i, of in enumerate(dataset.image_of_caption) if of == image]
        sentences = [{"raw": dataset.captions[i], "tokens": tokens(dataset.captions[i]), "sentid": i} for i in own]
        images.append({"filename": name, "imgid": image, "split": split, "sentences": sentences})
    path.write_text(json.dumps({"images": images}))


def test_a_table_gives_the_images_in_the_order_of_their_first_rows_with_all_their_captions(here):
    rows = [("b.png", "Two.", "val"), ("a.png", "One, with a comma.", "train"), ("b.png", "Three.", "val")]
    for name in ("a.png", "b.png"):
        shutil.copy("birds/images/0.png", f"birds/images/{name}")
    write_table(Path("birds/captions.csv"), rows)
    found = load_dataset("birds")
    assert found.image_names == ("b.png", "a.png")
    assert found.split_of_image == ("val", "train")
    assert found.captions == ("Two.", "Three.", "One, with a comma.")
    assert found.image_of_caption.tolist() == [0, 0, 1]
    assert found.tokens[2] == ("one", "with", "a", "comma")
    assert (found.image_ids, found.caption_ids) == ((0, 1), (0, 1, 2))
    assert protocol_line(found.split("val")) == "1 image, 2 captions (2 each)"
    assert (found.tokenizer, is_published(found)) == ("unicode", None)


def test_json_lines_with_one_caption_or_a_list_give_the_same_data_set_as_a_table(here):
    table = load_dataset("birds")
    lines: list[dict[str, object]] = []
    for image, (name, split) in enumerate(zip(table.image_names, table.split_of_image, strict=True)):
        line, captions = {"image": name, "split": split, "ignored": 1}, table.captions[2 * image : 2 * image + 2]
        lines += [{**line, "caption": each} for each in captions] if image < 2 else [{**line, "caption": captions}]
    Path("birds/captions.csv").rename("birds/kept.csv")
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    Path("birds/captions.jsonl").write_text("\ufeff" + text + "\r\n", encoding="utf-8")
    assert load_dataset("birds").fingerprint == table.fingerprint == load_dataset("birds/kept.csv").fingerprint


@pytest.mark.parametrize("place", ["images", ".", "images/deep"])
def test_images_lie_in_their_folder_or_beside_the_file(here, place):
    before = load_dataset("birds")
    rows = [(name, caption) for name in before.image_names for caption in ENGLISH["red"]]
    target = Path("birds", place)
    target.mkdir(exist_ok=True)
    for name in before.image_names:
        os.replace(Path("birds/images", name), target / name)
    prefix = "deep/" if place == "images/deep" else ""
    write_table(Path("birds/captions.csv"), [(prefix + name, caption, "test") for name, caption in rows])
    found = load_dataset("birds")
    assert found.images[0].shape == (64, 64, 3)
    assert len(found.images) == 12


def test_images_beside_the_file_of_which_one_is_missing_are_looked_for_there(here):
    """Also where there is a folder `images`, of something else."""
    names = load_dataset("birds").image_names
    for name in names[1:]:
        os.replace(Path("birds/images", name), Path("birds", name))
    Path("birds/images", names[0]).unlink()
    found = check("birds")
    assert (found.missing, found.decoded) == ((names[0],), len(names) - 1)
    with pytest.raises(CapbenchError, match=rf"1 of 12 images are missing from .*birds: {names[0]}"):
        load_dataset("birds")


REFUSED = {
    "image,caption\na.png,A dog.": r"line 1: there is no column split; the line is 'image', 'caption'",
    "image;caption;split\na.png;A dog.;train": r"no column image; the line is 'image;caption;split'.*between commas",
    "": r"line 1: there is no column image; the line is empty",
    "image,caption,caption,split\n0.png,A,B,train": r"line 1: there are 2 columns caption; keep one",
    "image,caption,split": r"has no caption; write one a row",
    "image,caption,split\n0.png,A dog, a cat.,train": r"line 2: it has 4 fields, the first line 3.*double quotes",
    "image,caption,split\n0.png,A dog.,dev": r"line 2: the split is 'dev'; write train, val or test",
    "image,caption,split\n0.png,A dog.,train\n0.png, ,train": r"line 3: the caption of 0\.png is empty",
    "image,caption,split\n0.png,A,train\n1.png,B,train\n0.png,A,test": r"line 4: .*in test here and in train on line 2",
    "image,caption,split\n../0.png,A dog.,train": r"line 2: the image '\.\./0\.png' is no relative path inside",
    "image,caption,split\n0.png,A dog.,train\n./0.png,A dog.,test": r"line 3: the image '\./0\.png' has an empty part",
    f"image,caption,split\n{'A dog. ' * 45},0.png,train": r"line 2: the image .*has a part of 315 bytes",
    "image,caption,split\n/etc/passwd,A dog.,train": r"line 2: the image '/etc/passwd'",
    'image,caption,split\n0.png,"A dog.,train': r"line 2: malformed CSV: .*double quote",
    "image,caption,split\n0.png,A dog.,train\nx.png,A,val\ny.png,A,val": (
        r"2 of 3 images are missing.*x\.png, y\.png.*correct birds.captions\.csv"
    ),
}


@pytest.mark.parametrize("content", REFUSED)
def test_a_fault_of_a_table_is_named_with_its_line_and_what_to_do(here, content):
    Path("birds/captions.csv").write_text(content)
    with pytest.raises(CapbenchError, match=REFUSED[content]) as refused:
        load_dataset("birds")
    assert "birds/captions.csv" in str(refused.value)


def test_a_table_that_is_not_utf8_is_refused_by_its_line(here):
    Path("birds/captions.csv").write_bytes("image,caption,split\n0.png,läuft,train".encode("cp1252"))
    with pytest.raises(CapbenchError, match=r"captions\.csv, line 2: not UTF-8"):
        load_dataset("birds")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "0.png", "caption": "a"', r"line 2: malformed JSON: .*write one whole object a line"),
        ('{"image": "0.png", "split": "train"}', "line 2: caption: Field required"),
        ('{"image": "0.png", "split": "train", "caption": 5}', r"line 2: caption: .*list \(found 5\)"),
        ('{"image": "0.png", "split": "train", "caption": []}', "line 2: the list of captions is empty"),
        ('{"image": "0.png", "split": "train", "caption": ["a", ""]}', "line 2: the caption of 0.png is empty"),
        ('["0.png", "a", "train"]', r"line 2: Input should be an object .* \(found \['0"),
        ("[" * 100000, "line 2: malformed JSON"),
    ],
)
def test_a_fault_of_json_lines_is_named_with_its_line(here, line, message):
    Path("birds/captions.csv").unlink()
    good = '{"image": "1.png", "split": "train", "caption": "a"}'
    Path("birds/captions.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(CapbenchError, match=rf"captions\.jsonl, {message}"):
        load_dataset("birds")


def test_a_folder_without_a_data_set_or_with_two_is_refused(here):
    Path("birds/dataset_birds.json").write_text("{}")
    with pytest.raises(CapbenchError, match=r"birds holds dataset_birds\.json and captions\.csv; name the one"):
        load_dataset("birds")
    assert len(load_dataset("birds/captions.csv").images) == 12
    Path("empty").mkdir()
    with pytest.raises(CapbenchError, match=r"empty holds no data set; put dataset\*\.json .*captions\.csv"):
        load_dataset("./empty")
    with pytest.raises(CapbenchError, match=r"no such folder: nowhere"):
        load_dataset("nowhere/")
    with pytest.raises(CapbenchError, match=r"0\.png is no data set; give dataset"):
        load_dataset("birds/images/0.png")


@pytest.mark.parametrize(
    ("tokens", "tokenizer"),
    [
        (lambda raw: re.sub(r"[^a-z ]", "", raw.lower()).split(), "karpathy"),
        (lambda raw: re.sub(r"[^\w ]", "", raw.lower()).split(), "unicode"),
        (lambda raw: raw.replace(".", " .").replace("!", " !").replace(",", " ,").split(), "whitespace"),
    ],
)
def test_a_split_file_keeps_its_tokens_and_has_the_tokeniser_that_makes_them(here, tokens, tokenizer):
    captions = {**ENGLISH, "red": ("Ein rotes Läufchen.", "Rot läuft!")} if tokenizer == "unicode" else ENGLISH
    draw(Path("source"), captions)
    in_karpathys_format(Path("birds/dataset_mine.json"), Path("source"), tokens)
    Path("birds/captions.csv").unlink()
    found = load_dataset("birds")
    assert found.tokens[0] == tuple(tokens(found.captions[0]))
    assert found.tokenizer == tokenizer
    anew = read_own(Own("birds", Path("birds"), "unicode"))
    assert anew.tokens == load_dataset("source").tokens


def test_the_tokeniser_is_a_part_of_the_fingerprint_unless_it_is_karpathys(here):
    whole, plain = (read_own(Own("birds", Path("birds"), name)) for name in ("unicode", "karpathy"))
    assert replace(whole, tokenizer="karpathy").fingerprint != whole.fingerprint
    assert replace(plain, tokenizer="karpathy").fingerprint == plain.fingerprint


def test_a_folder_is_known_by_its_name_and_a_command_by_its_path_from_here(here, monkeypatch):
    assert named("birds") == Own("birds", Path("birds"), place="./birds")
    assert load_dataset(str(here / "birds")).place == "./birds", "no path of the machine"
    Path("My Birds (2)").mkdir()
    assert named("./My Birds (2)") == Own("my-birds-2", Path("My Birds (2)"), place="./My Birds (2)")
    assert named("birds/captions.csv").name == "birds"
    monkeypatch.chdir("birds")
    assert (named(".").name, named(".").place) == ("birds", "./.")
    assert named("../birds").place == "./."
    monkeypatch.chdir("images")
    assert named("..") == Own("birds", Path(".."), place="..")


@pytest.mark.parametrize("folder", ["coco", "Flickr8K", "鳥"])
def test_a_folder_with_the_name_of_a_known_data_set_or_none_is_refused(here, folder):
    Path("birds").rename(folder)
    with pytest.raises(CapbenchError, match=rf"the folder \./{folder} .*capbench datasets add NAME"):
        load_dataset(f"./{folder}")


def test_a_data_set_is_registered_listed_and_forgotten(here, capsys):
    run("datasets", "add", "my-birds", "birds")
    assert capsys.readouterr().out.splitlines()[:2] == [
        "my-birds: 12 images, 24 captions: 8 train / 2 val / 2 test",
        "8 different words by the tokeniser unicode",
    ]
    found = load_dataset("my-birds")
    assert (found.name, found.place) == ("my-birds", "")
    listed = {row[0]: row[1:] for row in describe(here)}
    assert list(listed) == [*KNOWN, "my-birds"]
    assert listed["my-birds"] == ("12", "24", "8 train / 2 val / 2 test", str(here / "birds"))
    run("datasets", "add", "my-birds", "birds", "--tokenizer", "karpathy")
    assert load_dataset("my-birds").tokenizer == "karpathy"
    Path("birds").rename("gone")
    assert "no such folder" in {row[0]: row[4] for row in describe(here)}["my-birds"]
    run("datasets", "remove", "my-birds")
    assert registered() == {}
    assert Path("gone/captions.csv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("add coco birds", "coco is the name of a known data set; choose another"),
        ("add My.Birds birds", "'My.Birds' is no name for a data set: take a-z"),
        ("add -- -birds birds", "'-birds' is no name for a data set"),
        ("add taken birds", "taken is .*birds/images already; choose another name, or capbench datasets remove taken"),
        ("add mine nowhere", "no such folder: nowhere"),
        ("add mine lonely", "lonely|mine has one training image, and training needs two"),
        ("remove coco", "coco is a known data set"),
        ("remove mine", "no registered data set 'mine'; there are taken"),
    ],
)
def test_what_cannot_be_registered_or_removed_is_refused_and_changes_nothing(here, words, message):
    draw(Path("lonely"), splits=("train", "val", "test"))
    file = register("taken", Path("birds/images"))
    before = file.read_bytes()
    with pytest.raises(CapbenchError, match=message):
        run("datasets", *words.split())
    assert file.read_bytes() == before


def test_a_list_of_registered_data_sets_that_cannot_be_locked_is_refused(here):
    (here.parent / "configuration" / "capbench" / "datasets.lock").mkdir(parents=True)
    with pytest.raises(CapbenchError, match=r"cannot write .*datasets\.lock: .*; make it and its folder writable"):
        register("mine", Path("birds"))
    assert registered() == {}


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"birds": "x"}', '{"birds": {"path": 5, "tokenizer": ""}}', '{"coco": {"path": "x", "tokenizer": ""}}'],
)
def test_a_damaged_list_of_registered_data_sets_is_named_and_known_ones_still_load(here, content):
    file = register("mine", Path("birds"))
    file.write_text(content)
    with pytest.raises(CapbenchError, match=r"datasets\.json.*correct or delete"):
        find("./birds")
    assert find("scenes") is None


def test_registered_data_sets_are_kept_where_the_user_keeps_settings(here, monkeypatch):
    assert register("mine", Path("birds")) == here.parent / "configuration" / "capbench" / "datasets.json"
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    monkeypatch.setenv("HOME", str(here))
    assert registered() == {}
    assert register("mine", Path("birds")) == here / ".config" / "capbench" / "datasets.json"
    assert unregister("mine").exists()

    def nobody(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    assert registered() == {}
    with pytest.raises(CapbenchError, match="set XDG_CONFIG_HOME"):
        register("mine", Path("birds"))


@pytest.mark.fault("split without images, or one training image")
@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("train",) * 8 + ("test",) * 4, "birds2 has no image in val: .*put images there"),
        (("train",) * 8 + ("val",) * 4, "birds2 has no image in test"),
        (("test",) * 4, "birds2 has no image in train and val"),
        (("train", "val", "test"), "birds2 has one training image, and training needs two"),
    ],
)
def test_data_that_no_model_can_be_trained_on_are_refused_before_features_are_made(here, splits, message, monkeypatch):
    monkeypatch.setenv("CAPBENCH_CACHE", str(here / "cache"))
    draw(Path("birds2"), splits=splits)
    with pytest.raises(CapbenchError, match=message):
        check_trainable(load_dataset("birds2"))
    with pytest.raises(CapbenchError, match=message):
        run("run", "vsepp", "--dataset", "birds2", "--encoder", "scenes", "--preset", "vsepp-ours", "--seed", "0")
    assert not (here / "cache").exists()
    assert not (here / "runs").exists()


JAPANESE = dict.fromkeys(ENGLISH, ("赤い四角です。", "これは四角です"))
GERMAN = dict.fromkeys(ENGLISH, ("Das Männchen läuft über die Straße.", "Ein grünes Männchen."))


@pytest.mark.fault("captions in other scripts")
@pytest.mark.parametrize("captions", [RUSSIAN, JAPANESE, GERMAN], ids=["Russian", "Japanese", "German"])
def test_captions_in_other_letters_are_scored_by_the_words_of_the_data_set(here, captions):
    draw(Path("other"), captions)
    dataset = load_dataset("other")
    assert dataset.metric_tokenizer == "unicode"
    scorer = CaptionScorer.of(dataset.split("test"))
    perfect = scorer.score([own[0] for own in dataset.split("test").of_images(dataset.split("test").captions)])
    assert perfect.metrics["bleu1"] == pytest.approx(100)
    assert perfect.metrics["rouge_l"] == pytest.approx(100)
    wrong = scorer.score(["zebra"] * 2)
    assert wrong.metrics["bleu1"] == pytest.approx(0, abs=1e-6)
    assert not {"meteor", "spice", "bleu4_as_written"} & set(perfect.metrics)
    assert perfect.notes[0] == "tokeniser: unicode, of the data set; the PTB tokeniser is made for English"
    assert [note.partition(":")[0] for note in perfect.notes[1:]] == ["meteor", "spice"]


def test_english_captions_of_ones_own_are_scored_as_coco_caption_does(here):
    dataset = load_dataset("birds")
    split = dataset.split("test")
    ours, theirs = CaptionScorer.of(split), CaptionScorer(split.of_images(split.captions))
    assert dataset.metric_tokenizer == ours.tokenizer == ""
    assert ours.references == theirs.references
    assert len(SPLITS) == 12
