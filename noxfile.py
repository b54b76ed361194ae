"""The tasks of the project. `nox -l` lists them; arguments after `--` go to the program that a session runs.

All sessions share one environment, `.nox/capbench`, because torch with its CUDA libraries takes 6 GB. The Python that
runs nox builds it from requirements.lock, and rebuilds it when that file or pyproject.toml changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "none"  # `environment` below builds it
nox.options.sessions = ["tests", "lint"]

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".nox" / "capbench"
PROGRAMS = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
BUILT_FROM = ("requirements.lock", "pyproject.toml")

# A test process for each core with one thread each, so that they do not compete.
PARALLEL = ("--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal", "--durations=10")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# Environment variables that limit a process to the instruction set that torch calls by this name: torch's own kernels,
# oneDNN, MKL, numpy's OpenBLAS and numpy's loops. From the larger set to the smaller.
LIMITS = {
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    },
    "DEFAULT": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    },
}


def paper_names() -> list[str]:
    """The packages under reproductions/ that define PAPER, without importing them."""
    files = sorted(ROOT.glob("reproductions/*/__init__.py"))
    return [file.parent.name for file in files if re.search(r"\bPAPER\b", file.read_text(encoding="utf-8"))]


def reproduction(name: str) -> Callable[[nox.Session], None]:
    def reproduce(session: nox.Session) -> None:
        run(session, "capbench", "run", name, *session.posargs)

    reproduce.__doc__ = f"Train {name}, score it and rewrite its page (`-- --dataset flickr8k --seeds 3`)."
    return reproduce


for _name in paper_names():
    nox.session(reproduction(_name), name=f"reproduce-{_name.replace('_', '-')}")


@nox.session
def leaderboards(session: nox.Session) -> None:
    """Write the pages from the records; `-- --check` writes nothing and fails if a page is stale."""
    run(session, "capbench", "leaderboard", *session.posargs)


@nox.session
def site(session: nox.Session) -> None:
    """Build the site in site/; `-- --check` only compares, `-- --out FOLDER` builds it elsewhere."""
    run(session, "capbench", "site", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Time the kernels and the training step against their baselines on this machine."""
    run(session, "pytest", "benchmarks", "--benchmark-only", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests but the browser's on all cores; arguments replace pytest's (`-- tests/test_layout.py -k lock`)."""
    if session.posargs:
        run(session, "pytest", *session.posargs)
    else:
        run(session, "pytest", *PARALLEL, "--ignore=tests/browser", **ONE_THREAD)


@nox.session
def reliability(session: nox.Session) -> None:
    """Run the tests that cause faults and record which were survived, for leaderboards/reliability.md."""
    record = "--faults=leaderboards/reliability/faults.json"
    run(session, "pytest", *PARALLEL, "-m", "fault", record, *session.posargs, **ONE_THREAD)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Give each parser of files from outside broken ones (`-- --minutes 10`); what is wrong is kept in fuzz-cases/."""
    record = "--record=leaderboards/reliability/fuzzing.json"
    run(session, "python", "-m", "tests.fuzzing", record, *session.posargs, **ONE_THREAD)


@nox.session
def soak(session: nox.Session) -> None:
    """Kill and signal small runs, two at a time, and compare each with its undisturbed twin (`-- --minutes 60`)."""
    record = "--record=leaderboards/reliability/soak.json"
    run(session, "python", "-m", "tests.soak", record, *session.posargs, **ONE_THREAD)


@nox.session(name="tests-browser")
def tests_browser(session: nox.Session) -> None:
    """Open the site in Chromium: the one in CHROMIUM or on the PATH, else playwright's own, which is installed."""
    if not (os.environ.get("CHROMIUM") or shutil.which("chromium")):
        environment(session)
        install = [str(PROGRAMS / "playwright"), "install", "chromium"]
        session.run(*install, success_codes=range(256))  # the tests are skipped, and say why, where it fails
    run(session, "pytest", "tests/browser", *session.posargs, **ONE_THREAD)


@nox.session(name="tests-portable")
@nox.parametrize("name", list(LIMITS))
def tests_portable(session: nox.Session, name: str) -> None:
    """Run the numerical tests again with smaller instruction sets."""
    own, known = instructions(session), ["AVX512", *LIMITS]
    if own not in known[: known.index(name)]:
        session.skip(f"torch uses {own} on this machine, which {name} does not limit")
    if (limited := instructions(session, **LIMITS[name])) != name:
        session.error(f"torch was limited to {name} but uses {limited}")
    run(session, "pytest", *PARALLEL, "-m", "numerical", *session.posargs, **ONE_THREAD, **LIMITS[name])


def instructions(session: nox.Session, **variables: str) -> str:
    """The instruction set that torch uses on this machine, with these environment variables."""
    environment(session)
    program = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    return str(session.run(str(PROGRAMS / "python"), "-c", program, env=variables, silent=True)).split()[-1]


@nox.session
def lint(session: nox.Session) -> None:
    """Check style (ruff), format (ruff) and types (mypy)."""
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    run(session, "mypy")


@nox.session
def lock(session: nox.Session) -> None:
    """Pin the dependencies of pyproject.toml in requirements.lock; `-- --upgrade` takes the newest versions."""
    groups = [f"--group={name}" for name in ("build", "test", "lint")]
    form = ["--universal", "--python-version=3.11", "--generate-hashes", "--no-emit-index-url", "--quiet"]
    files = ["pyproject.toml", "--output-file=requirements.lock", "--custom-compile-command=nox -s lock"]
    session.run(*uv(session), "pip", "compile", *form, *groups, *files, *session.posargs)


def run(session: nox.Session, program: str, *words: str, **variables: str) -> None:
    """Run a program of the shared environment, which comes first on the PATH of its children.

    Ctrl-C reaches the program too. nox then waits without limit, so that a run can save its checkpoint.
    """
    environment(session)
    path = os.pathsep.join([str(PROGRAMS), os.environ.get("PATH", "")])
    variables |= {"PATH": path, "VIRTUAL_ENV": str(ENVIRONMENT)}
    session.run(str(PROGRAMS / program), *words, env=variables, interrupt_timeout=None)


def environment(session: nox.Session) -> None:
    """Build the shared environment, unless the same Python built it from the same files."""
    hashes = "".join(hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in BUILT_FROM)
    wanted = f"{sys.version} {ENVIRONMENT} {hashes}"
    stamp = ENVIRONMENT / "built-from"
    with one_at_a_time(ENVIRONMENT.with_suffix(".lock")):
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
            return
        make = [*uv(session), "venv", "--clear", "--quiet", f"--python={sys.executable}"]
        install = [*uv(session), "pip", "install", "--quiet", f"--python={ENVIRONMENT}"]
        session.run(*make, str(ENVIRONMENT))
        session.run(*install, "--require-hashes", "--requirements=requirements.lock")
        session.run(*install, "--no-deps", "--no-build-isolation", "--editable=.")
        stamp.write_text(wanted, encoding="utf-8")


def uv(session: nox.Session) -> list[str]:
    """The command of uv: the one installed beside nox, else the one on PATH."""
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv"]
    return [shutil.which("uv") or session.error("uv is missing: python -m pip install uv")]


@contextmanager
def one_at_a_time(file: Path) -> Iterator[None]:
    """Let one process build the environment while others wait (not on Windows)."""
    file.parent.mkdir(exist_ok=True)
    with file.open("w") as handle:
        if importlib.util.find_spec("fcntl"):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
