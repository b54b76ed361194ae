"""Records from anybody: what is no record is left out and named, and nothing in one stops the pages of the others."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from capbench import leaderboard
from capbench.base.errors import CapbenchError
from capbench.cli.leaderboard import leaderboard as leaderboard_command
from capbench.data.datasets import known_fingerprint
from capbench.evidence.bundles import pack, unpack
from capbench.evidence.records import load_arrays, load_results, save_result
from capbench.evidence.results import Results
from capbench.runs.paper import papers
from tests.made_up import made_up_leaderboards, made_up_record

RANKS = np.arange(4, dtype=np.int32)


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A record among others, to be spoilt."""
    folder = made_up_leaderboards(tmp_path / "leaderboards")
    fields = {"preset": "order0", "seed": 7, "dataset_fingerprint": known_fingerprint("flickr8k")}
    record = made_up_record(metrics={"image_to_caption_r1": 20.0, "rsum": 90.0}, recipe={"margin": 0.05}, **fields)
    return save_result(record, {"image_to_caption": RANKS}, folder / "results")


def pages(path: Path, capsys) -> tuple[str, str]:
    """The pages with the table of the terminal and the JSON, and what was warned of."""
    folder = path.parents[1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        leaderboard.write(papers(), folder)
        leaderboard_command(as_json=True, leaderboards=folder)
        printed = capsys.readouterr().out
        json.loads(printed, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
        results = Results.load(folder / "results")
        out = io.StringIO()
        for item in leaderboard.closing(papers()["vsepp"], results, results, [r.file for r in results.records]):
            Console(file=out, width=200).print(item)
    text = "".join(page.read_text("utf-8") for page in folder.glob("*.md"))
    return text + printed + out.getvalue(), " ".join(str(each.message) for each in caught)


def epoch(**fields: Any) -> dict[str, Any]:
    known = {"epoch": 0, "loss": 1.0, "learning_rate": 0.1, "seconds": 1.0, "validation": {"rsum": 1.0}}
    return {"curve": [known | fields, {**known, "epoch": 1}]}


LEFT_OUT: dict[str, dict[str, Any]] = {
    "a date before the first year": {"started": "0001-01-01T00:00:00+14:00"},
    "a date after the last year": {"started": "9999-12-31T23:59:59-14:00"},
    "an epoch of 400 digits": epoch(epoch=10**400),
    "a best epoch of 400 digits": {"best_epoch": 10**400},
    "a seed of 400 digits": {"seed": 10**400},
    "parameters of 400 digits": {"parameters": 10**400},
    "a loss near the largest number": epoch(loss=1e308),
    "a metric near the largest number": {"metrics": {"rsum": 1e308}},
    "a validation metric near the largest number": {"validation": {"rsum": -1e308}},
    "a schema that is no number": {"schema_version": "two"},
    "metrics of a future schema": {"schema_version": 99, "metrics": {"rsum": [1.0]}},
}


@pytest.mark.fault("record with absurd numbers, dates or a schema of the future")
@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_record_with_absurd_values_is_left_out_and_named(hostile, capsys, name):
    hostile.write_text(json.dumps(json.loads(hostile.read_text()) | LEFT_OUT[name]))
    shown, warned = pages(hostile, capsys)
    assert hostile.name in warned
    assert hostile.stem not in shown
    assert "`vsepp`" in shown


@pytest.mark.fault("record of endless nesting or digits")
@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"recipe": ' * 60_000, b'{"seed": ' + b"9" * 5000 + b"}"])
def test_a_record_of_endless_nesting_or_digits_is_left_out_and_named(hostile, capsys, content):
    hostile.write_bytes(content)
    shown, warned = pages(hostile, capsys)
    assert hostile.name in warned
    assert "`vsepp`" in shown


SHOWN: dict[str, dict[str, Any]] = {
    "a metric's name with markup": {"metrics": {"a|b\nc[/red] <script>x</script>": 3.0, "rsum": 90.0}},
    "a validation metric's name with markup": epoch(validation={"<script>|\n": 1.0}),
    "the first and last year": {"started": "0001-01-01T00:00:00+00:00"},
    "large numbers": {"metrics": {"rsum": 1e99}, "wall_seconds": 1e99} | epoch(loss=1e99, validation={"rsum": -1e99}),
    "negative numbers": {"seed": -3, "images": -5, "threads": -1, "best_epoch": -9} | epoch(epoch=-5),
    "a best epoch that is none": {"best_epoch": 77},
    "a recipe of other types": {"recipe": {"training": 3, "margin": "a", "metric": ["x"], "similarity": None}},
    "a deep recipe": {"recipe": {"a": [[[[[[]]]]]]}},
    "a surrogate in its name": {"preset": "\ud800", "encoder": "", "view": ""},
    "a name of 100,000 letters": {"preset": "x" * 100_000},
    "fields set by hand of other types": {"overrides": {"a": {"b": []}, "|": None}},
    "a schema of the future": {"schema_version": 99},
}


@pytest.mark.fault("record with hostile names or values of other types")
@pytest.mark.parametrize("name", SHOWN)
def test_a_record_with_odd_names_and_values_stops_no_page_and_is_escaped(hostile, capsys, name):
    hostile.write_text(json.dumps(json.loads(hostile.read_text()) | SHOWN[name]))
    shown, _ = pages(hostile, capsys)
    assert "`vsepp`" in shown
    assert "<script" not in shown.partition("[\n {")[0]  # JSON has it as it is


def bundle(content: bytes, name: str = "image_to_caption.npy") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return buffer.getvalue()


def array(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(values), allow_pickle=True)
    return buffer.getvalue()


def header(shape: tuple[int, ...]) -> bytes:
    """A header that claims a shape."""
    words = repr({"descr": "<i4", "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(words) + 1) + words + b"\n"


def changed(content: bytes, field: int, value: int) -> bytes:
    """A bundle with another value in a field of its entry, here and in the directory at its end."""
    spoilt = bytearray(content)
    spoilt[field - 2] = spoilt[spoilt.index(b"PK\x01\x02") + field] = value
    return bytes(spoilt)


def bomb() -> bytes:
    """1 MB that becomes 1 GB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w") as member:
        member.write(header((2**28,)))
        for _ in range(2**10):
            member.write(bytes(2**20))
    return buffer.getvalue()


GOOD = bundle(array(RANKS))
BUNDLES = {
    "a plain .npy": (array(RANKS), "not a zip file"),
    "an empty file": (b"", "not a zip file"),
    "no .npy inside": (bundle(b"hello"), "magic string"),
    "badly compressed": (GOOD[:60] + bytes(8) + GOOD[68:], ""),
    "encrypted": (changed(GOOD, 8, 1), "is encrypted"),
    "of an unknown compression": (changed(GOOD, 10, 97), "another method than deflate"),
    "a claim of 3.6 TiB": (bundle(header((10**12,))), r"claims the shape \(1000000000000,\)"),
    "of two dimensions": (bundle(array(np.zeros((2, 2), np.int32))), "has 2 dimensions"),
    "floats": (bundle(array(RANKS / 3)), "other values than whole numbers"),
    "negative": (bundle(array(RANKS - 1)), "whole numbers of 0 and more"),
    "strings": (bundle(array(["a", "b"])), "records hold numbers"),
    "objects": (bundle(array(np.array([{}], dtype=object))), "records hold numbers"),
    "NaN": (bundle(array(np.full(4, np.nan)), "cider.npy"), "not finite"),
    "nothing": (bundle(array(RANKS[:0])), "whole numbers of 0 and more"),
    "of another length than their groups": (
        pack({"caption_to_image": RANKS, "image_of_caption": RANKS[:3]}),
        "has 4 queries, and 'image_of_caption' 3",
    ),
}


@pytest.mark.fault("arrays of a record that are none, or claim what they have not")
@pytest.mark.parametrize("name", BUNDLES)
def test_arrays_that_are_none_are_refused_and_the_pages_are_made_without_them(hostile, capsys, name):
    content, reason = BUNDLES[name]
    hostile.with_suffix(".npz").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    hostile.write_text(json.dumps(json.loads(hostile.read_text()) | {"arrays_sha256": digest}))
    (record,) = (each for each in load_results(hostile.parent) if each.file == hostile.name)
    with pytest.raises(CapbenchError, match=rf"cannot read the arrays .*{hostile.stem}\.npz: .*{reason}"):
        load_arrays(record, hostile.parent)
    shown, warned = pages(hostile, capsys)
    assert hostile.stem in shown
    assert f"{hostile.stem}.npz" in warned


@pytest.mark.fault("bomb of 1 MB that becomes 1 GB among the arrays of a record")
def test_a_bomb_is_refused_before_it_is_unpacked():
    content = bomb()
    assert len(content) < 1_500_000
    start = time.monotonic()
    with pytest.raises(CapbenchError, match=r"it claims 1,073,741,\d+ bytes of arrays, and 536,870,912 is"):
        unpack(content)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("name", ["x" * 500, "a\0b", "results"])
def test_a_name_that_no_file_of_arrays_can_have_is_refused(hostile, name):
    record = made_up_record(arrays=name, arrays_sha256="0")
    (hostile.parent / "results").mkdir()
    with pytest.raises(CapbenchError, match="cannot read the arrays"):
        load_arrays(record, hostile.parent)
