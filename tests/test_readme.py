"""The commands of the guides: README's examples run as they stand, and every other command parses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from capbench.cli.app import app
from capbench.data.datasets import load_dataset
from capbench.runs import paper as registry
from tests.tiny_papers import make_papers_tiny

ROOT = Path(__file__).resolve().parents[1]
GUIDES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("reproductions/*/README.md")))
COMMAND = re.compile(r"^capbench [^`\n]*$|`(capbench [^`\s]+ [^`]+)`", re.M)  # in prose, `capbench run` is a name


def commands(guide: Path) -> list[list[str]]:
    found = (inline or line for line, inline in ((m[0], m[1]) for m in COMMAND.finditer(guide.read_text("utf-8"))))
    return [shlex.split(line, comments=True)[1:] for line in found]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: str(guide.relative_to(ROOT)))
def test_each_command_of_a_guide_parses(guide):
    for words in commands(guide):
        if not {"COMMAND", "<name>"} & set(words):
            app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("name", list(registry.papers()))
def test_a_papers_readme_names_presets_that_exist(name):
    text = (registry.paper(name).folder / "README.md").read_text("utf-8")
    named = {word.replace("-N-", "-4-") for word in re.findall(r"`([\w-]+-ours)`", text)}
    assert named <= set(registry.paper(name).presets("flickr8k"))
    assert named or name == "translational"  # whose presets are all the article's


@pytest.fixture
def tiny_papers(monkeypatch, tmp_path):
    """Every paper tiny, on a few scenes, in an empty folder with features in SCAN's layout."""
    few = make_papers_tiny(monkeypatch, tmp_path / "cache")
    for module in ("capbench.runs.materials", "capbench.data.datasets", "capbench.site.gallery.unseen"):
        monkeypatch.setattr(
            f"{module}.load_dataset", lambda name, *data: few if name == "scenes" else load_dataset(name)
        )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    for module in ("capbench.runs.materials", "capbench.data.datasets"):
        monkeypatch.setattr(f"{module}.load_captions", lambda name, data=None: few)
    precomputed(few, tmp_path / "precomp")
    monkeypatch.chdir(tmp_path)


def precomputed(dataset, folder):
    """Random features in SCAN's layout."""
    folder.mkdir()
    for name in ("train", "val", "test"):
        split = dataset.split(name)
        features = np.random.default_rng(0).normal(size=(len(split.image_index), 8)).astype(np.float32)
        np.save(folder / f"{name}_ims.npy", features[split.image_of_caption])
        (folder / f"{name}_caps.txt").write_text("".join(f"{caption}\n" for caption in split.captions))


def test_the_examples_of_the_readme_run_in_their_order_as_they_stand(tiny_papers, tmp_path, capsys):
    block = next(b for b in re.findall(r"```\n(.*?)```", GUIDES[0].read_text("utf-8"), re.S) if "capbench run" in b)
    lines = [line for line in block.splitlines() if line]
    assert len(lines) > 10
    for line in lines:
        capsys.readouterr()
        app(shlex.split(line, comments=True)[1:], exit_on_error=False, print_error=False, result_action="return_value")
    assert json.loads(capsys.readouterr().out)
    for name in ("hits.png", "attention.png", "captions.png", "regions.png", "gallery.png"):
        Image.open(tmp_path / name).verify()
    assert len(json.loads((tmp_path / "captions.json").read_text())) == 60
