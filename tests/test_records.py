"""Records: unique names, whole files, old schemas, and nothing in them that must not be there."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from capbench.base import provenance as origin
from capbench.base.errors import CapbenchError
from capbench.base.files import check_writable
from capbench.base.processor import blas, instruction_set
from capbench.base.provenance import provenance
from capbench.evidence.records import Epoch, Result, add_records, load_arrays, load_results, save_result
from tests.made_up import made_up_record

RANKS = {"image_to_caption": np.array([0, 3, 1]), "caption_to_image": np.arange(15)}


def example(**changes) -> Result:
    epoch = Epoch(epoch=1, loss=2.0, learning_rate=2e-4, seconds=1.0, validation={"rsum": 9.0})
    told = {
        "dataset": "scenes", "encoder": "scenes", "metrics": {"image_to_caption_r1": 33.3},
        "validation": {"rsum": 9.0}, "best_epoch": 2, "recipe": {"margin": 0.2, "milestones": [15]}, "curve": [epoch],
        "parameters": 10, "vocabulary_size": 12, "started": "2024-05-01T12:00:00+00:00", "wall_seconds": 3.0,
        "command": "capbench",
    }  # fmt: skip
    return made_up_record(**{**told, **provenance(), **changes})


def test_a_record_comes_back_as_it_was_written(tmp_path):
    result = example()
    path = save_result(result, RANKS, tmp_path)
    (loaded,) = load_results(tmp_path)
    same = {"arrays", "arrays_sha256", "file", "marks"}
    assert loaded.model_dump(exclude=same) == result.model_dump(exclude=same)
    assert loaded.file == path.name
    arrays = load_arrays(loaded, tmp_path)
    assert arrays["image_to_caption"].tolist() == [0, 3, 1]
    assert arrays["image_to_caption"].dtype == np.int32
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".npz"]


def test_the_name_tells_what_the_record_is(tmp_path):
    path = save_result(example(), {}, tmp_path)
    assert path.name.startswith("vsepp-vsepp-scenes-scenes-s0-20240501T120000Z-")


def test_a_record_without_arrays_leaves_one_file(tmp_path):
    save_result(example(), {}, tmp_path)
    assert [file.suffix for file in tmp_path.iterdir()] == [".json"]
    assert load_arrays(load_results(tmp_path)[0], tmp_path) == {}


@pytest.mark.fault("runs in one second, clock set back")
def test_runs_in_one_second_or_after_the_clock_went_back_keep_their_names(tmp_path):
    paths = {save_result(example(), RANKS, tmp_path) for _ in range(30)}
    paths |= {save_result(example(started="2020-01-01T00:00:00Z"), {}, tmp_path) for _ in range(5)}
    assert len(paths) == 35
    assert len(load_results(tmp_path)) == 35


@pytest.mark.parametrize("arrays", [{}, RANKS])
def test_a_name_that_is_taken_is_drawn_again(tmp_path, monkeypatch, arrays):
    draws = iter(["aaaaaa", "aaaaaa", "bbbbbb"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(draws))
    first = save_result(example(), arrays, tmp_path)
    before = first.read_bytes()
    assert save_result(example(seed=0), RANKS, tmp_path).stem.endswith("bbbbbb")
    assert first.read_bytes() == before


@pytest.mark.fault("two processes with one folder of records")
def test_two_processes_share_one_folder(tmp_path):
    save_result(example(), RANKS, tmp_path)
    code = (
        "import sys, numpy as np; from pathlib import Path; from capbench.evidence.records import *\n"
        "folder = Path(sys.argv[1]); result = load_results(folder)[0]; print('ready', flush=True)\n"
        "for _ in range(40): save_result(result, {'a': np.arange(9)}, folder)"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        for _ in range(40):
            save_result(example(), RANKS, tmp_path)
        assert other.wait(timeout=60) == 0
    found = load_results(tmp_path)
    assert len(found) == 81
    assert all(load_arrays(result, tmp_path) for result in found)


def test_the_same_arrays_give_the_same_bytes(tmp_path):
    paths = [save_result(example(), RANKS, tmp_path).with_suffix(".npz") for _ in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_an_integer_too_large_or_an_object_array_is_refused(tmp_path):
    with pytest.raises(CapbenchError, match="int32"):
        save_result(example(), {"ranks": np.array([2**31])}, tmp_path)
    with pytest.raises(CapbenchError, match="numbers only"):
        save_result(example(), {"captions": np.array([{}], dtype=object)}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "results").write_text("a file stands where the folder should be")
    with pytest.raises(CapbenchError, match="choose another folder"):
        check_writable(tmp_path / "results")
    with pytest.raises(CapbenchError, match="choose another folder"):
        save_result(example(), RANKS, tmp_path / "results")


@pytest.mark.fault("limit on the size of files while a record is written")
@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_full_disk_leaves_nothing_behind(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    result = example(notes=["x" * 20_000])
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CapbenchError, match="cannot write"):
            save_result(result, RANKS, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("file that is no record among records")
def test_a_record_that_is_no_record_is_named_and_left_out(tmp_path):
    good = save_result(example(), {}, tmp_path)
    (tmp_path / "cut.json").write_bytes(good.read_bytes()[:200])
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "wrong.json").write_text(json.dumps(json.loads(good.read_text()) | {"seed": "nine"}))
    (tmp_path / "latin.json").write_bytes(b'{"paper": "\xe9"}')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [result.file for result in load_results(tmp_path)] == [good.name]
    text = " ".join(str(warning.message) for warning in caught)
    assert all(name in text for name in ("cut.json", "list.json", "wrong.json", "seed", "latin.json"))


@pytest.mark.fault("records of an older schema or a dirty tree")
def test_an_older_schema_is_kept_and_marked(tmp_path):
    old = {"paper": "vsepp", "preset": "vse0", "dataset": "scenes", "seed": 3, "metrics": {"rsum": 1.0}}
    (tmp_path / "old.json").write_text(json.dumps(old | {"mood": "good"}))
    (result,) = load_results(tmp_path)
    assert result.metrics == {"rsum": 1.0}
    assert result.model_extra == {"mood": "good"}
    assert result.marks[0].startswith("schema 0: no split, protocol")
    assert result.marks[1] == "unknown fields: mood"


def test_a_newer_schema_and_a_dirty_tree_are_marked(tmp_path):
    path = save_result(example(dirty=True), {}, tmp_path)
    assert load_results(tmp_path)[0].marks == ("dirty tree",)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 9}))
    assert load_results(tmp_path)[0].marks == ("schema 9", "dirty tree")


def test_only_the_named_paper_is_loaded_and_no_folder_is_no_record(tmp_path):
    save_result(example(), {}, tmp_path)
    save_result(example(paper="karpathy"), {}, tmp_path)
    assert [result.paper for result in load_results(tmp_path, "karpathy")] == ["karpathy"]
    assert load_results(tmp_path / "none") == []


@pytest.mark.fault("arrays of a record that are changed, missing or outside")
def test_changed_missing_or_outside_arrays_are_refused(tmp_path):
    bundle = save_result(example(), RANKS, tmp_path / "in").with_suffix(".npz")
    (result,) = load_results(tmp_path / "in")
    (tmp_path / "secret.npz").write_bytes(bundle.read_bytes())
    with pytest.raises(CapbenchError, match="plain file name"):
        load_arrays(result.model_copy(update={"arrays": "../secret.npz"}), tmp_path / "in")
    bundle.write_bytes(bundle.read_bytes()[:-10])
    with pytest.raises(CapbenchError, match="has changed"):
        load_arrays(result, tmp_path / "in")
    bundle.unlink()
    with pytest.raises(CapbenchError, match="cannot read the arrays"):
        load_arrays(result, tmp_path / "in")


@pytest.mark.fault("pickle among the arrays of a record")
def test_a_pickle_among_the_arrays_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    bundle = tmp_path / "bad.npz"
    bundle.write_bytes(pickle.dumps(Payload()))
    digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
    with pytest.raises(CapbenchError, match=r"bad\.npz"):
        load_arrays(example(arrays=bundle.name, arrays_sha256=digest), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.fault("strange name of a run")
def test_a_strange_run_name_stays_inside_the_folder(tmp_path):
    path = save_result(example(preset="../../up|<b>", encoder=".hidden\n"), RANKS, tmp_path / "in")
    assert path.parent == tmp_path / "in"
    assert not set(path.name) & set("|<>\n/")
    assert load_results(tmp_path / "in")[0].preset == "../../up|<b>"


@pytest.mark.fault("token in the environment")
def test_a_token_in_the_environment_is_never_in_a_record(tmp_path, monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", "hub_0123456789")
    monkeypatch.setenv("MY_API_KEY", "key-abcdefgh")
    result = example(command="run --token hub_0123456789", notes=["key-abcdefgh"], recipe={"key-abcdefgh": 1})
    text = save_result(result, {}, tmp_path).read_text()
    assert "hub_0123456789" not in text
    assert "key-abcdefgh" not in text
    assert "run --token [removed]" in text


def test_provenance_names_versions_and_nothing_of_the_environment(monkeypatch):
    monkeypatch.setenv("HARMLESS_NAME", "a-value-to-look-for")
    found = provenance()
    assert set(found) == {"commit", "dirty", "versions", "device", "threads", "instruction_set", "blas"}
    assert {"capbench", "torch", "numpy", "python"} <= set(found["versions"])
    assert "a-value-to-look-for" not in json.dumps(found)
    assert found["device"].startswith("CPU, ")


def test_instructions_and_blas_are_named_where_a_cpu_computes():
    assert (provenance()["instruction_set"], provenance()["blas"]) == (instruction_set(), blas())
    assert (provenance("meta")["instruction_set"], provenance("meta")["blas"]) == ("", "")


def test_a_record_from_before_a_field_has_it_blank_and_no_mark(tmp_path):
    path = save_result(example(precision="bf16", published=True, images=15), {}, tmp_path)
    (new,) = load_results(tmp_path)
    assert (new.precision, new.published, new.images) == ("bf16", True, 15)
    later = ("instruction_set", "blas", "precision", "published", "images")
    document = {name: value for name, value in json.loads(path.read_text()).items() if name not in later}
    path.write_text(json.dumps(document))
    (old,) = load_results(tmp_path)
    assert [getattr(old, name) for name in later] == ["", "", "", None, None]
    assert old.marks == new.marks


def test_a_checkout_of_another_project_is_not_taken_for_ours(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "site" / "capbench" / "base").mkdir(parents=True)
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "site" / "capbench" / "base" / "provenance.py"))
    assert origin._commit() == ("unknown", False)


def test_the_commit_and_a_change_are_seen_and_results_do_not_count_as_one(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        run = subprocess.run(["git", "-C", str(tmp_path), *name, *words], check=True, capture_output=True)
        return run.stdout.decode().strip()

    (tmp_path / "capbench" / "base").mkdir(parents=True)
    source = tmp_path / "capbench" / "base" / "provenance.py"
    source.write_text("one")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(origin, "__file__", str(source))
    (tmp_path / "leaderboards").mkdir()
    (tmp_path / "leaderboards" / "new.json").write_text("{}")
    assert origin._commit() == (git("rev-parse", "HEAD"), False)
    source.write_text("two")
    assert origin._commit() == (git("rev-parse", "HEAD"), True)


def test_a_number_that_is_not_finite_or_a_time_without_zone_is_refused():
    with pytest.raises(ValidationError):
        example(metrics={"rsum": float("nan")})
    with pytest.raises(ValidationError, match="time zone"):
        example(started="2024-05-01T12:00:00")
    assert example(started="2024-05-01T14:00:00+02:00").started == "2024-05-01T12:00:00+00:00"


def test_records_are_added_to_another_folder_with_their_arrays(tmp_path):
    paths = [save_result(example(seed=seed), RANKS, tmp_path / "mine") for seed in range(2)]
    copies = add_records(paths, tmp_path / "shared")
    assert [copy.read_bytes() for copy in copies] == [path.read_bytes() for path in paths]
    added = load_results(tmp_path / "shared")
    assert [record.seed for record in added] == [0, 1]
    assert all(load_arrays(record, tmp_path / "shared").keys() == RANKS.keys() for record in added)
    assert add_records(paths, tmp_path / "shared") == copies


def test_a_record_that_does_not_read_back_or_whose_name_is_taken_is_not_added(tmp_path):
    path = save_result(example(), RANKS, tmp_path / "mine")
    (tmp_path / "mine" / "notes.json").write_text("{}")
    with pytest.raises(CapbenchError, match=r"notes\.json is not a record: paper: Field required"):
        add_records([tmp_path / "mine" / "notes.json"], tmp_path / "shared")
    with pytest.raises(CapbenchError, match=r"gone\.json is not a record"):
        add_records([tmp_path / "mine" / "gone.json"], tmp_path / "shared")
    path.with_suffix(".npz").write_bytes(b"changed")
    with pytest.raises(CapbenchError, match="has changed since its record was written"):
        add_records([path], tmp_path / "shared")
    assert not (tmp_path / "shared").exists()
    path = save_result(example(), {}, tmp_path / "mine")
    (copy,) = add_records([path], tmp_path / "shared")
    copy.write_text("{}")
    with pytest.raises(CapbenchError, match="is there already and differs"):
        add_records([path], tmp_path / "shared")
