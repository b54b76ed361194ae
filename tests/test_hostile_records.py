"""Records from anybody: what is no record is left out and named, and nothing in one stops the pages of the others."""

from __future__ import annotations

import hashlib
import io
import json
import re
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
from capbench.data.datasets import known_fingerprint
from capbench.evidence.bundles import pack, unpack
from capbench.evidence.records import load_arrays, load_results, save_result
from capbench.evidence.results import Results
from capbench.runs.paper import papers
from tests.made_up import made_up_leaderboards, made_up_record

RANKS = np.arange(4, dtype=np.int32)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of records, to which hostile ones are added."""
    return made_up_leaderboards(tmp_path / "leaderboards")


def add(folder: Path, **changes: Any) -> Path:
    """Add a record with some fields changed to values that none of ours would have."""
    fields = {"preset": "order0", "seed": 7, "dataset_fingerprint": known_fingerprint("flickr8k")}
    record = made_up_record(metrics={"image_to_caption_r1": 20.0, "rsum": 90.0}, recipe={"margin": 0.05}, **fields)
    path = save_result(record, {"image_to_caption": RANKS}, folder / "results")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def pages(folder: Path) -> tuple[str, str]:
    """The pages, and what was warned of; the JSON holds no NaN, and the tables of the terminal can be printed."""
    paper = {"vsepp": papers()["vsepp"]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        leaderboard.write(paper, folder)
        rows = json.dumps(leaderboard.rows_as_json(paper, folder))
        json.loads(rows, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
        results = Results.load(folder / "results")
        out = io.StringIO()
        for item in leaderboard.closing(paper["vsepp"], results, results, [r.file for r in results.records]):
            Console(file=out, width=200).print(item)
    text = "".join(page.read_text("utf-8") for page in folder.glob("*.md"))
    assert "`vsepp`" in text
    return text, " ".join(str(each.message) for each in caught)


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
def test_records_with_absurd_values_are_left_out_and_named(folder):
    paths = {name: add(folder, **changes) for name, changes in LEFT_OUT.items()}
    shown, warned = pages(folder)
    for name, path in paths.items():
        assert path.name in warned, name
        assert path.stem not in shown, name


@pytest.mark.fault("record of endless nesting or digits")
def test_records_of_endless_nesting_or_digits_are_left_out_and_named(folder):
    contents = (b"[" * 200_000, b'{"recipe": ' * 60_000, b'{"seed": ' + b"9" * 5000 + b"}")
    for number, content in enumerate(contents):
        (folder / "results" / f"endless-{number}.json").write_bytes(content)
    _, warned = pages(folder)
    assert all(f"endless-{number}.json" in warned for number in range(3))


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
def test_records_with_odd_names_and_values_stop_no_page_and_are_escaped(folder):
    paths = {name: add(folder, **{"protocol": name, **changes}) for name, changes in SHOWN.items()}
    shown, warned = pages(folder)
    assert "<script" not in re.sub(r"^(`{3,}).*?^\1$", "", shown, flags=re.M | re.S)  # beyond code
    for name, path in paths.items():
        assert path.stem in shown or path.name in warned, name
    assert "a&#124;b c&#91;/red&#93; &lt;script&gt;" in shown


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
def test_arrays_that_are_none_are_refused_and_the_pages_are_made_without_them(folder):
    paths = {}
    for place, (name, (content, _)) in enumerate(BUNDLES.items()):
        digest = hashlib.sha256(content).hexdigest()
        paths[name] = add(folder, arrays_sha256=digest, encoder=f"encoder{place}")
        paths[name].with_suffix(".npz").write_bytes(content)
    records = {record.file: record for record in load_results(folder / "results")}
    for name, (_, reason) in BUNDLES.items():
        with pytest.raises(CapbenchError, match=rf"cannot read the arrays .*\.npz: .*{reason}"):
            load_arrays(records[paths[name].name], folder / "results")
    shown, warned = pages(folder)
    for name, path in paths.items():
        assert path.stem in shown, name
        assert f"{path.stem}.npz" in warned, name


@pytest.mark.fault("bomb of 1 MB that becomes 1 GB among the arrays of a record")
def test_a_bomb_is_refused_before_it_is_unpacked():
    content = bomb()
    assert len(content) < 1_500_000
    start = time.monotonic()
    with pytest.raises(CapbenchError, match=r"it claims 1,073,741,\d+ bytes of arrays, and 536,870,912 is"):
        unpack(content)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("name", ["x" * 500, "a\0b", "results"])
def test_a_name_that_no_file_of_arrays_can_have_is_refused(tmp_path, name):
    (tmp_path / "results").mkdir()
    with pytest.raises(CapbenchError, match="cannot read the arrays"):
        load_arrays(made_up_record(arrays=name, arrays_sha256="0"), tmp_path)
