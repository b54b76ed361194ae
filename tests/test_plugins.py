"""Papers and encoders of other packages: found by entry points, and refused or left out where they are faulty."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import reproductions
from capbench.base.errors import CapbenchError
from capbench.cli import options
from capbench.runs.paper import paper, papers
from capbench.vision.encoders import Encoder
from capbench.vision.networks import load_trunk

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "tests" / "example_paper"
OURS = ["karpathy", "show_and_tell", "show_attend_tell", "translational", "vsepp"]
PAPER = """
from dataclasses import replace
from capbench.runs.paper import bundled
PAPER = replace(bundled()["vsepp"], name={!r})
"""
TRUNK = """
from torch import nn
from capbench.vision.networks import Trunk
def make(weights):
    pixels = ((0.0,) * 3, (1.0,) * 3)
    return Trunk(nn.AvgPool2d(8), nn.Flatten(), {channels}, 48, ("map", "vector"), pixels, input_size=32)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package of one module with entry points, as an installer would leave it."""

    def install(package: str, code: str, papers: tuple[str, ...] = (), encoders: tuple[str, ...] = ()) -> None:
        site = tmp_path / package
        information = site / f"{package}-0.3.dist-info"
        information.mkdir(parents=True)
        (site / f"{package}.py").write_text(code)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.3\n")
        groups = {"capbench.papers": papers, "capbench.encoders": encoders}
        text = "".join(f"[{group}]\n" + "\n".join(lines) + "\n" for group, lines in groups.items())
        (information / "entry_points.txt").write_text(text)
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, package, raising=False)

    return install


@pytest.fixture
def folder_of_papers(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder that counts as a part of reproductions/."""
    folder = tmp_path / "reproductions"
    folder.mkdir()
    monkeypatch.setattr(reproductions, "__path__", [*reproductions.__path__, str(folder)])
    importlib.invalidate_caches()
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.startswith("reproductions."):
            del sys.modules[name]


def test_without_other_packages_the_papers_are_those_of_the_folder():
    assert [name for name, known in papers().items() if known.entry is None] == OURS


def test_a_paper_is_found_by_its_module_or_by_itself_and_says_where_it_is_from(install):
    install("one", PAPER.format("first"), papers=("any = one",))
    install("two", PAPER.format("second"), papers=("other = two:PAPER",))
    known = papers()
    assert [*known] == [*OURS, "first", "second"]
    assert known["first"].place.endswith("vsepp of one 0.3 (one)")
    assert not known["second"].in_repository
    assert known["vsepp"].in_repository


BROKEN = {
    "import nowhere_to_be_found": "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    "PAPER = ": "SyntaxError",
    "raise SystemExit(3)": "SystemExit: 3",
    "PAPER = 'a paper'": "neither a Paper nor a module with PAPER",
    PAPER.format("Of Capitals"): "a-z, 0-9 and _ alone, not 'Of Capitals'",
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_package_is_named_and_left_out_and_breaks_no_other(install, code):
    install("broken", code, papers=("bad = broken",))
    install("whole", PAPER.format("good"), papers=("good = whole",))
    with pytest.warns(UserWarning, match=f"bad of broken 0.3 .broken. is left out: .*{re.escape(BROKEN[code])}"):
        assert [*papers()] == [*OURS, "good"]


def test_two_packages_with_a_paper_of_one_name_are_refused_with_both_places(install):
    install("one", PAPER.format("same"), papers=("a = one",))
    install("two", PAPER.format("same"), papers=("b = two",))
    with pytest.raises(CapbenchError, match=r"two papers .*'same': .*one 0.3 \(one\) and .*two 0.3 \(two\); rename"):
        papers()


def test_another_package_cannot_take_the_name_of_a_paper_of_ours(install):
    install("one", PAPER.format("vsepp"), papers=("a = one",))
    with pytest.raises(CapbenchError, match=r"'vsepp': \S*reproductions.vsepp and .* of one 0.3"):
        papers()


def test_two_entry_points_of_one_name_are_refused_with_both_places(install):
    install("one", PAPER.format("first"), papers=("same = one",))
    install("two", PAPER.format("second"), papers=("same = two",))
    with pytest.raises(CapbenchError, match=r"the name 'same': one 0.3 \(one\) and two 0.3 \(two\); uninstall one"):
        papers()


def test_a_copied_paper_is_refused_until_it_has_a_name_of_its_own_and_then_stands_alone(folder_of_papers):
    shutil.copytree(ROOT / "reproductions" / "vsepp", folder_of_papers / "copied")
    with pytest.raises(CapbenchError) as refused:
        papers()
    assert all(str(folder) in str(refused.value) for folder in (ROOT / "reproductions/vsepp", folder_of_papers))


def test_a_copied_paper_whose_imports_lead_to_the_original_is_refused(folder_of_papers):
    copy = folder_of_papers / "copied"
    shutil.copytree(ROOT / "reproductions" / "vsepp", copy)
    text = (copy / "__init__.py").read_text().replace('name="vsepp"', 'name="copied"')
    (copy / "__init__.py").write_text(text.replace("from .experiment", "from reproductions.vsepp.experiment"))
    with pytest.raises(CapbenchError, match=f"{copy} takes VSEExperiment from reproductions.vsepp, .* from .model"):
        papers()


def guide() -> str:
    return (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Add a paper")[2].partition("\n## ")[0]


def test_the_commands_of_the_guide_to_adding_a_paper_add_one(folder_of_papers):
    block = re.findall(r"```\n(.*?)```", guide(), re.S)[0]
    shutil.copytree(ROOT / "reproductions" / "show_and_tell", folder_of_papers / "show_and_tell")
    made = [line for line in block.splitlines() if not line.startswith("capbench")]
    subprocess.run("\n".join(["set -e", *made]), shell=True, cwd=folder_of_papers.parent, check=True, timeout=60)
    (name,) = re.findall(r"^capbench run (\S+)", block, re.M)
    added = paper(name)
    assert added.folder == folder_of_papers / name
    assert added.experiment.__module__ == f"reproductions.{name}.experiment"
    assert added.headline[0] in added.presets("scenes")


def test_the_example_package_has_the_files_that_the_guide_lists():
    listed = re.findall(r"^\| `(\w+\.\w+)` \|", guide(), re.M)
    assert len(listed) > 5
    assert all((EXAMPLE / "bag_of_words" / name).is_file() for name in listed)


def test_an_encoder_of_another_package_gives_features_and_carries_its_version(install):
    install("seen", TRUNK.format(channels=3), encoders=("mean = seen:make",))
    encoder, grid = Encoder("mean"), Encoder("mean", "grid")
    images = torch.full((2, 3, 32, 32), 51, dtype=torch.uint8)
    assert encoder(images).tolist() == [[pytest.approx(0.2)] * 48] * 2
    assert grid(images).shape == (2, 16, 3)
    assert encoder.packages == {"seen": "0.3"}
    before = encoder.fingerprint
    encoder.packages = {"seen": "0.4"}
    assert encoder.fingerprint != before
    assert Encoder("scenes").packages == {}


FAULTY = {
    "make = None": "TypeError: 'NoneType' object is not callable",
    "def make(weights): return 3": "TypeError: it gives int, no capbench.vision.networks.Trunk",
    TRUNK.format(channels=4): r"ValueError: two images give a map \[2, 3, 4, 4\] and vectors \[2, 48\]",
    "import nowhere_to_be_found": "ModuleNotFoundError",
}


@pytest.mark.parametrize("code", FAULTY)
def test_an_encoder_that_is_not_what_it_says_is_refused_with_its_package(install, code):
    install("seen", code, encoders=("mean = seen:make",))
    with pytest.raises(CapbenchError, match=f"encoder mean of seen 0.3 .seen:make. cannot be used: {FAULTY[code]}"):
        load_trunk("mean")


def test_an_encoder_cannot_take_a_name_of_ours_nor_that_of_another_package(install):
    install("one", TRUNK, encoders=("vgg19 = one:make", "mean = one:make"))
    with pytest.raises(CapbenchError, match=r"'vgg19' is capbench's and that of one 0.3 \(one:make\); uninstall that"):
        load_trunk("vgg19", "random")
    install("two", TRUNK, encoders=("mean = two:make",))
    with pytest.raises(CapbenchError, match=r"'mean': one 0.3 .* and two 0.3 .*; uninstall one"):
        load_trunk("mean")


def test_the_command_line_knows_the_encoders_of_other_packages_without_loading_them(install):
    install("unloadable", "raise RuntimeError", encoders=("mean = unloadable:make",))
    known: Any = options._known
    known(None, "mean")
    with pytest.raises(ValueError, match=r"Did you mean 'mean'.*scenes, mean, timm/<name>"):
        known(None, "meen")
    assert "unloadable" not in sys.modules


def test_an_unknown_encoder_is_refused_with_those_of_other_packages(install):
    install("one", TRUNK, encoders=("mean = one:make",))
    with pytest.raises(CapbenchError, match=r"no encoder 'meen'; known are alexnet.* timm/<name> .*, mean"):
        load_trunk("meen")
