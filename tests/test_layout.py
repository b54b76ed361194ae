"""The rules of the project as a whole: who may import whom, what is never loaded, what is never written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The parts of the core from the top: a part imports only from those below its own. README.md shows them in this order.
ORDER = (
    "cli",
    "site",
    "demo",
    "tools",
    "leaderboard",
    "captioners",
    "runs",
    "scoring",
    "training",
    "evidence",
    "timing",
    "vision",
    "metrics",
    "data",
    "kernels",
    "base",
)
PAPERS_MAY_NOT_IMPORT = (
    *("cli", "site", "demo", "tools", "leaderboard"),
    *("runs.harness", "runs.materials", "runs.loaded"),
)

# Imported under another name than the one they are installed by, or brought by a declared one.
INSTALLED_AS = {
    "PIL": "pillow", "huggingface_hub": "huggingface-hub", "lazy_loader": "lazy-loader",
    "mlflow": "mlflow-skinny", "griffe": "griffelib", "triton": "torch",
    "fastapi": "gradio", "starlette": "gradio", "uvicorn": "gradio",
}  # fmt: skip
PICKLES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FOREIGN_PATH = re.compile(
    r"(?<![\w.~$})\]/-])/(?:home|root|work|workspace|tmp|mnt|media|Users|opt|srv|scratch)/\w|\b[A-Z]:\\Users"
)


def modules(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def name_of(file: Path) -> str:
    """capbench/data/captions.py -> capbench.data.captions; a package's __init__.py -> the package."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def only_for_types(tree: ast.Module) -> set[ast.AST]:
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    return {inner for guard in guards for child in guard.body for inner in ast.walk(child)}


def imports(file: Path, types: bool = True) -> Iterator[str]:
    """Every imported name, its module in front, at any depth; `types=False` skips TYPE_CHECKING blocks."""
    tree = parse(file)
    hidden = set() if types else only_for_types(tree)
    package = name_of(file).split(".") if file.name == "__init__.py" else name_of(file).split(".")[:-1]
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def calls(file: Path) -> Iterator[tuple[str, dict[str | None, str]]]:
    """Every call as (what is called, its keywords as source)."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def part_of_capbench(name: str) -> str | None:
    """capbench.data.captions.Split -> data; None for what is no part of capbench."""
    first, _, rest = name.partition(".")
    part = rest.partition(".")[0]
    known = (ROOT / "capbench" / part).is_dir() or (ROOT / "capbench" / f"{part}.py").is_file()
    return part if first == "capbench" and part and known else None


def test_the_order_names_all_parts_of_the_core_and_no_other():
    assert {part_of_capbench(name_of(file)) for file in modules("capbench")} - {None} == set(ORDER)


def test_a_part_of_the_core_stands_only_on_those_below():
    wrong = []
    for file in modules("capbench"):
        here = part_of_capbench(name_of(file))
        for name in imports(file, types=False):
            there = part_of_capbench(name)
            if here != there and there in ORDER and (here is None or ORDER.index(there) < ORDER.index(here)):
                wrong.append(f"{name_of(file)} imports {name}")
    assert not wrong


def test_no_module_of_the_core_imports_itself_by_way_of_others():
    known = {name_of(file) for file in modules("capbench")}

    def module_of(name: str) -> str | None:
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name or None

    imported = {name_of(file): {module_of(name) for name in imports(file, types=False)} for file in modules("capbench")}
    TopologicalSorter({module: others - {None} for module, others in imported.items()}).prepare()  # raises CycleError


def test_the_readme_shows_the_parts_of_the_core_in_their_order():
    picture = (ROOT / "README.md").read_text(encoding="utf-8").partition("```\ncapbench/\n")[2].partition("```")[0]
    assert re.findall(r"^  (\w+)(?:/|\.py)  ", picture, re.MULTILINE) == list(ORDER)


def test_the_core_imports_no_paper_test_or_benchmark():
    outside = ("reproductions", "tests", "benchmarks")
    wrong = [
        f"{name_of(file)} imports {name}"
        for file in modules("capbench")
        for name in imports(file)
        if any(inside(name, other) for other in outside)
    ]
    assert not wrong


def test_only_paper_imports_modules_by_name():
    wrong = [
        name_of(file)
        for file in modules("capbench", "reproductions")
        for called, _ in calls(file)
        if called.rpartition(".")[2] in {"import_module", "__import__"} and name_of(file) != "capbench.runs.paper"
    ]
    assert not wrong


def test_papers_never_import_each_other_nor_what_runs_them():
    wrong = []
    for file in modules("reproductions"):
        own = ".".join(name_of(file).split(".")[:2])
        for name in imports(file):
            other_paper = inside(name, "reproductions") and not inside(name, own)
            outside = inside(name, "tests") or inside(name, "benchmarks")
            runs_it = any(inside(name, f"capbench.{other}") for other in PAPERS_MAY_NOT_IMPORT)
            if other_paper or outside or runs_it:
                wrong.append(f"{name_of(file)} imports {name}")
    assert not wrong


def test_what_capbench_imports_is_a_declared_dependency():
    project = pyproject()["project"]
    extras = (line for lines in project["optional-dependencies"].values() for line in lines)
    declared = {re.split(r"[^\w-]", line)[0] for line in [*project["dependencies"], *extras]}
    known = sys.stdlib_module_names | {"capbench", "reproductions"} | declared
    for file in modules("capbench", "reproductions"):
        libraries = {name.partition(".")[0] for name in imports(file)}
        missing = {name for name in libraries if INSTALLED_AS.get(name, name) not in known}
        assert not missing, f"{name_of(file)} imports {missing}: add it to the dependencies in pyproject.toml"


def test_nothing_is_unpickled():
    wrong = []
    for file in modules("capbench", "reproductions", "benchmarks"):
        pickles = [name for name in imports(file) if name.partition(".")[0] in PICKLES]
        wrong += [f"{name_of(file)} imports {name}" for name in pickles]
        for called, words in calls(file):
            last = called.rpartition(".")[2]
            unsafe_torch = called == "torch.load" and words.get("weights_only") != "True"
            unsafe_numpy = last == "load" and words.get("allow_pickle", "False") != "False"
            if unsafe_torch or unsafe_numpy or last in {"read_pickle", "to_pickle"}:
                wrong.append(f"{name_of(file)} calls {called} with {words}")
    assert not wrong


def test_every_module_postpones_its_annotations():
    for file in [*modules("capbench", "reproductions", "benchmarks", "tests"), ROOT / "noxfile.py"]:
        constants_alone = all(isinstance(node, ast.Expr | ast.Assign) for node in parse(file).body)
        postponed = "__future__.annotations" in imports(file)
        assert constants_alone or postponed, f"{name_of(file)}: from __future__ import annotations"


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def locked() -> dict[str, list[str]]:
    """Each package of requirements.lock with its lines: one for each Python or platform that differs."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    packages: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            packages.setdefault(line.partition("==")[0].strip(), []).append(line)
    return packages


def test_the_lock_has_a_hash_for_each_package_and_no_address():
    for name, lines in locked().items():
        for line in lines:
            assert re.match(r"[\w.-]+==[\w.!]+( ;[^#]*?)?( +--hash=sha256:[0-9a-f]{64})+$", line), name
    assert "://" not in (ROOT / "requirements.lock").read_text(encoding="utf-8")


def test_the_lock_holds_every_dependency():
    project = pyproject()
    groups = project["dependency-groups"].values()
    wanted = [*project["project"]["dependencies"], *(line for group in groups for line in group)]
    missing = {re.split(r"[^\w.-]", line)[0] for line in wanted} - set(locked())
    assert not missing, "nox -s lock"


def test_the_lock_takes_the_registrys_own_torch_with_its_cuda_libraries():
    (line,) = locked()["torch"]
    version = re.match(r"torch==(\d+)\.(\d+)\.(\d+) ", line)
    assert version, "a version without a local part"
    assert tuple(map(int, version.groups())) >= (2, 11, 0)
    assert any(name.startswith("nvidia-") for name in locked())


def project_files() -> list[Path]:
    """What git would keep; where there is no git, what is not hidden."""
    try:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
        names = listed.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        found = (file.relative_to(ROOT) for file in ROOT.rglob("*"))
        names = [str(file) for file in found if not any(part.startswith(".") for part in file.parts)]
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_file_names_a_path_outside_the_project():
    wrong = []
    for file in project_files():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        wrong += [f"{file.relative_to(ROOT)}: {found.group()}" for found in FOREIGN_PATH.finditer(text)]
    assert not wrong


@pytest.mark.parametrize("text", ["|home|someone", 'open("|tmp|x")', "=|root|weights", "C:\\" + "Users\\someone"])
def test_a_path_of_somebodys_machine_is_seen(text: str):
    assert FOREIGN_PATH.search(text.replace("|", "/"))


@pytest.mark.parametrize("text", ["data/tmp/x", "../home/x", "$HOME/root/x", "example.org/home/x", "/proc/cpuinfo"])
def test_a_relative_path_or_an_address_is_no_path_of_a_machine(text: str):
    assert not FOREIGN_PATH.search(text)
