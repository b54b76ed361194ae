"""Where things are kept: what environment variables name."""

from __future__ import annotations

from pathlib import Path

import pytest

from capbench.base.cache import cache_folder, path_from
from capbench.base.errors import CapbenchError


@pytest.fixture(autouse=True)
def home(monkeypatch) -> Path:
    for variable in ("CAPBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/of/someone")
    return Path("/of/someone")


def test_the_cache_is_in_the_home_folder_unless_a_variable_moves_it(home, monkeypatch):
    assert cache_folder() == home / ".cache" / "capbench"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/capbench")
    monkeypatch.setenv("CAPBENCH_CACHE", "/mine")
    assert cache_folder() == Path("/mine")
    monkeypatch.setenv("CAPBENCH_CACHE", "")
    assert cache_folder() == Path("/caches/capbench")


@pytest.mark.fault("tilde in a variable")
@pytest.mark.parametrize("variable", ["CAPBENCH_CACHE", "XDG_CACHE_HOME"])
def test_a_tilde_is_the_home_folder(home, monkeypatch, variable):
    monkeypatch.setenv(variable, "~/kept")
    assert cache_folder().is_relative_to(home / "kept")
    assert path_from(variable) == home / "kept"


def test_a_user_without_a_home_folder_is_told_which_variable_to_set(monkeypatch):
    def unknown(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(CapbenchError, match="set CAPBENCH_CACHE"):
        cache_folder()
