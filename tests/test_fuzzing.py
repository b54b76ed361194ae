"""Broken files are read or refused in a line, whatever is broken; those that once were neither are kept here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fuzzed import PARSERS, Parser
from tests.fuzzing import Bench, fuzz, mutated

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits its memory as Linux does")
MUTATIONS = 40

_HEADER = b"\x93NUMPY\x01\x00\x0a\x00{'a': (1, \n"  # a bracket that nothing closes
_LONG_HEADER = b"\x93NUMPY\x02\x00\xff\xff\xff\xff"  # 4 GB, by its own account
FOUND: dict[str, tuple[bytes, ...]] = {  # by parser, what it once neither read nor refused
    "run.json": (b"[]", b"[" * 9999, b'{"identity": {"job": []}}', b'{"job": 1}'),
    "SCAN (ids)": (b"9" * 5000,),  # more digits than Python makes a number of
    "ids (.txt)": (b"9" * 5000,),
    "record": (b'{"schema_version": 1, "preset": []}', b'{"schema_version": 1, "preset": {}}'),
    **dict.fromkeys(("similarity (.npy)", "ids (.npy)", "SCAN (arrays)"), (_HEADER, _LONG_HEADER)),
}


@pytest.mark.fault("broken file of any kind")
@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_a_broken_file_is_read_or_refused_and_nothing_is_written(parser, tmp_path):
    bench, random = Bench(parser, tmp_path / "files"), np.random.default_rng(0)
    for content in FOUND.get(parser.name, ()):
        assert bench.fault(content) is None, content
    for _ in range(MUTATIONS):
        bench.try_one(random)
    assert not bench.tally.broken


def test_what_breaks_the_contract_is_counted_once_and_made_smaller(tmp_path):
    def read(path: Path) -> None:
        if b"dog" in path.read_bytes():
            raise KeyError("dog")

    def make(folder: Path) -> Path:
        (folder / "a.txt").write_bytes(b"a cat and a log, a fog and a dg")
        return folder / "a.txt"

    bench = Bench(Parser("dogs", make, read), tmp_path / "files")
    assert bench.fault(b"one dog") == "KeyError in its caller"
    assert bench._smaller(b"a cat and a dog and a log", "KeyError in its caller") == b"dog"


@pytest.mark.parametrize("act", [lambda path: path.with_suffix(".new").write_text("x"), lambda path: path.unlink()])
def test_a_parser_that_writes_or_removes_is_noticed(tmp_path, act):
    bench = Bench(Parser("clean", lambda folder: _plain(folder), lambda path: path.read_bytes()), tmp_path / "files")
    bench.parser = Parser("writer", bench.parser.make, act)
    assert (bench.fault(b"x") or "").startswith("it did")


def _plain(folder: Path) -> Path:
    (folder / "a.txt").write_bytes(b"plain")
    return folder / "a.txt"


def test_a_parser_that_takes_much_memory_is_noticed(tmp_path):
    bench = Bench(Parser("clean", _plain, lambda path: path.read_bytes()), tmp_path / "files")
    bench.parser = Parser("glutton", _plain, lambda path: bytes(2**32))
    assert bench.fault(b"x") == "MemoryError in its caller"


def test_mutations_of_one_seed_are_the_same_and_differ_from_the_content():
    first, again = ([mutated(b'{"a": [1, 2]}' * 9, np.random.default_rng(n)) for n in range(50)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 40


def test_the_rows_of_a_record_count_what_was_read_and_refused(tmp_path):
    bench = Bench(Parser("clean", _plain, lambda path: path.read_bytes()), tmp_path / "files")
    (row,) = fuzz([bench], 0.002, 0)
    assert row["executions"] == row["read"] != 0
    assert (row["parser"], row["refused"], row["contract broken"]) == ("clean", 0, 0)
