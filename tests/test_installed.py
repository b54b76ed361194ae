"""capbench as a wheel, and a package with a paper and an encoder beside it, at work in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from capbench.base.errors import CapbenchError
from capbench.cli.app import app
from capbench.evidence.records import load_results

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"

Done = subprocess.CompletedProcess[str]


def pip(*words: object) -> None:
    """pip without a network; what is built comes from the tests' own environment."""
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", str(words[0]), *offline, *map(str, words[1:])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--wheel-dir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """Where the wheel and the example are installed. Their dependencies come from the tests' environment."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--target", folder, wheel, ROOT / "tests" / "example_paper")
    (information,) = folder.glob("capbench-*.dist-info")
    vcs = {"vcs": "git", "commit_id": COMMIT}  # as an installer notes a repository's address (PEP 610)
    (information / "direct_url.json").write_text(json.dumps({"url": "https://example.org/capbench", "vcs_info": vcs}))
    return folder


@pytest.fixture(scope="module")
def folder(site, tmp_path_factory) -> Path:
    """An empty working folder, but for a few photographs, which are drawn."""
    here = tmp_path_factory.mktemp("empty")
    done = capbench("datasets", "export", "scenes", "data/flickr8k", "--images", "20", site=site, cwd=here)
    assert done.returncode == 0, done.stderr
    (here / "data/flickr8k/dataset_scenes.json").rename(here / "data/flickr8k/dataset_flickr8k.json")
    return here


def capbench(*words: str, site: Path, cwd: Path) -> Done:
    """The installed command."""
    variables = {"PYTHONPATH": str(site), "CAPBENCH_DATA": str(cwd / "data"), "CAPBENCH_CACHE": str(cwd / "cache")}
    command = [sys.executable, str(site / "bin" / "capbench"), *words]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True, timeout=240
    )


def test_nothing_but_capbench_lands_at_the_top_level(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"capbench"}
    for needed in ("papers/vsepp/reported.csv", "vision/scenes_trunk.safetensors", "py.typed"):
        assert f"capbench/{needed}" in names


def test_a_preset_trained_in_an_empty_folder_is_recorded_with_the_commit_that_was_installed(site, folder):
    words = ["--dataset", "flickr8k", "--encoder", "scenes", "--seed", "0"]
    done = capbench("run", "vsepp", "--preset", "vsepp-ours", *words, site=site, cwd=folder)
    assert done.returncode == 0, done.stderr
    (record,) = load_results(folder / "runs" / "records", "vsepp")
    assert (record.commit, record.dirty) == (COMMIT, False)
    *_, reason, page = done.stdout.splitlines()
    assert reason.startswith("leaderboards/results has no record; the project's own come with its repository")
    assert "this machine" in (folder / page).read_text()
    assert "](../reproductions" not in (folder / page).read_text()


def test_a_paper_and_an_encoder_of_another_package_run_and_have_a_page(site, folder):
    (line,) = re.findall(r"^capbench (run bag-of-words)$", (ROOT / "README.md").read_text("utf-8"), re.M)
    words = ["--dataset", "flickr8k", "--encoder", "thumbnail", "--seed", "0"]
    done = capbench(*line.split(), *words, site=site, cwd=folder)
    assert done.returncode == 0, done.stderr
    (record,) = load_results(folder / "runs" / "records", "bag_of_words")
    assert (record.encoder, record.versions["bag-of-words"]) == ("thumbnail", "0.1")
    page = (folder / "leaderboards" / "bag_of_words.md").read_text()
    assert "# A Bag of Words beside an Image" in page
    assert "from the package bag-of-words 0.1" in page
    assert "](../reproductions" not in page


def test_the_leaderboard_says_that_the_committed_records_are_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    app(["leaderboard"], result_action="return_value")
    assert "the project's own come with its repository, not with the installed package" in capsys.readouterr().out
    app(["leaderboard", "--json"], result_action="return_value")
    assert capsys.readouterr().out == "[]\n"
    with pytest.raises(CapbenchError, match=r"leaderboards.results has no record; .*`capbench records add`"):
        app(["leaderboard", "--check"], exit_on_error=False, print_error=False, result_action="return_value")
    assert not list(tmp_path.iterdir())
