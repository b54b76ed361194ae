"""The command line: fast help with a text for every option, and refusals that leave nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from cyclopts import App
from rich.table import Table

from capbench.base.errors import CapbenchError, StoppedError
from capbench.base.progress import byte_bar, reporter
from capbench.cli import main, options
from capbench.cli.app import app
from capbench.cli.output import console, say
from capbench.data.captions import SPLITS
from capbench.data.datasets import NAMES, SOURCES, SPLIT_FILES, WITHOUT_RESTVAL
from capbench.data.scenes import scenes
from capbench.data.tokenizers import TOKENIZERS
from capbench.evidence.records import save_result
from capbench.runs.tracking import CURVES, Tracker
from capbench.vision.extraction import VIEWS
from capbench.vision.imported import FORMATS
from capbench.vision.networks import ENCODERS
from capbench.vision.regions import PROVIDERS
from tests.test_records import example

ROOT = Path(__file__).parents[1]
SLOW = {"torch", "torchvision", "matplotlib", "pandas", "scipy", "nltk", "pydantic", "numpy", "reproductions"}


def commands(parent: App, *words: str) -> dict[tuple[str, ...], App]:
    """Each command by the words that call it."""
    found = {words: parent}
    for name in parent:
        if not name.startswith("-"):
            found |= commands(parent[name], *words, name)
    return found


COMMANDS = commands(app)


Done = subprocess.CompletedProcess[str]


def run(*words: str, cwd: Path, before: str = "", after: str = "", **variables: str) -> Done:
    """`capbench` with `words` in a process of its own; `before` and `after` are statements that run around it."""
    program = f"import sys\n{before}\nfrom capbench.cli import main\ntry: main()\nfinally:\n pass\n {after}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CAPBENCH_CACHE": str(cwd / "cache"), **variables}
    return subprocess.run(
        [sys.executable, "-c", program, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_imports_nothing_slow_and_offers_no_negative_forms(words, tmp_path):
    modules = "print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    done = run(*words, "--help", cwd=tmp_path, after=modules)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: capbench")
    assert "--no-" not in done.stdout
    assert "--empty-" not in done.stdout
    assert not SLOW & set(done.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize("words", [["--version"], ["rum"], ["run", "vsepp", "--seed", "-1"]], ids=" ".join)
def test_the_version_and_refusals_import_nothing_slow(words, tmp_path):
    done = run(*words, cwd=tmp_path, after="print('LOADED', *{name.partition('.')[0] for name in sys.modules})")
    assert not SLOW & set(done.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_has_a_text(words):
    command = COMMANDS[words]
    assert command.help
    if command.default_command is None:
        return
    for argument in command.assemble_argument_collection(parse_docstring=True):
        if not argument.children:  # a group of options, each of which has one
            assert argument.parameter.help, f"{' '.join(words)}: {argument.name}"


def test_the_help_lists_the_exit_codes(tmp_path):
    text = run("--help", cwd=tmp_path).stdout
    assert all(f"{code}:" in text for code in (0, 1, 2, 75, 130, 141))


def test_the_help_lists_the_commands_in_groups(tmp_path):
    text = run("--help", cwd=tmp_path).stdout
    groups = ("Reproduce", "Bring your own", "Use a model", "Look into")
    places = [text.index(f"─ {group} ─") for group in groups]
    assert places == sorted(places)
    for group, verb in zip(groups, ("run", "compare", "search", "records"), strict=True):
        assert verb in text.split(f"─ {group} ─")[1].split("╰")[0]
    for name in app:
        assert name.startswith("-") or f"│ {name} " in text[places[0] :]


def test_the_choices_of_options_are_those_of_the_modules_that_do_the_work():
    assert ("scenes", *SOURCES, WITHOUT_RESTVAL) == NAMES
    assert set(get_args(options.Tokenizer)) == set(TOKENIZERS)
    assert get_args(options.Split) == SPLITS
    assert options.ENCODERS == ENCODERS
    assert get_args(options.View) == tuple(VIEWS)
    assert get_args(options.RegionProvider) == PROVIDERS
    assert get_args(options.Tracker) == get_args(Tracker) == tuple(CURVES)
    assert get_args(options.FeatureFormat) == tuple(FORMATS)


REFUSED = {
    "rum vsepp": 'command "rum".*"run"',
    "run": "PAPER",
    "run vsep": "no paper 'vsep'; did you mean 'vsepp'",
    "run vsepp --preset": "--preset requires at least 1",
    "run vsepp --preset vse3": "no vsepp preset 'vse3'.*vse0",
    "run vsepp --encoder": "--encoder requires at least 1",
    "run vsepp --encoder resnet18": 'no encoder "resnet18".*mobilenet_v2, scenes, timm/<name>, and file/<name>',
    "run vsepp --encoder timm/a,b": 'no encoder "timm/a,b"',
    "run vsepp --dataset flickr8k --encoder timm/resnet51": "has no model 'resnet51'; near it are",
    "run vsepp --dataset flicker8k": '"flicker8k" for --dataset.*flickr8k',
    "run vsepp --dataset flickr8k": "CAPBENCH_DATA is not set",
    "run vsepp --seed -1": '"-1" for --seed.*>= 0',
    "run vsepp --seed 1e23": '"1e23" into int',
    "run vsepp --seed 99999999999": '"99999999999" for --seed.*< 4294967296',
    "run vsepp --set margin": "'margin' sets no field; write training.learning_rate=1e-3",
    "run vsepp --set margins=1": "vse0: the recipe has no field 'margins'; did you mean margin",
    "run vsepp --set training.epochs=0": r"vse0: training\.epochs cannot be 0: it should be greater than 0",
    "compare vse0": "B.*requires an argument",
    "compare vse0 vsepp": "no preset with a record 'vse0'; there are none",
    "compare vse0 vsepp --encoder": "--encoder requires at least 1",
    "compare a.json b.json": r"a\.json is not a record",
    "results": "no such record in leaderboards.results or runs.records",
    "results --format yaml": '"yaml" for --format.*latex',
    "show vsep": "no preset 'vsep'; did you mean 'vsepp'",
    "run vsepp --seeds 0": '"0" for --seeds.*>= 1',
    "leaderboard --leaderboards typo": "typo has no record",
    "leaderboard --check --leaderboards typo": "typo has no record",
    "features scene": '"scene".*scenes',
    "features scenes --from .": "needs both --from FOLDER and --format scan, butd or h5",
    "features scenes --from . --format npz": '"npz" for --format.*scan.*butd.*h5',
    "features scenes --from . --format scan --encoder vgg19": "leave out --encoder",
    "features scenes --from typo --format butd": "there is no folder typo; name the one",
    "features scenes --encoder file/typo": "file/typo names imported features: no network",
    "run vsepp --encoder file/": 'no encoder "file/"',
    "run vsepp --encoder file/typo": "no imported features file/typo of this scenes; there are none",
    "features scenes --view 10C --region-provider multiscale": "give --region-provider or --view 10C, not both",
    "features scenes --view 2C": '"2C" for --view.*1C',
    "features scenes --region-provider boxes": '"boxes" for --region-provider.*multiscale',
    "search ball --images . --top 0": '"0" for --top.*>= 1',
    "search ball --images . --top -1": '"-1" for --top.*>= 1',
    "search": "--images FOLDER",
    "score captions r.json": "cannot read r.json",
    "score captions r.json --record": "--record needs --system NAME",
    "score captions r.json --rule bleu": '"bleu" for --rule.*coco-caption',
    "score embeddings i.npy": "i.npy holds one array; give a second file",
    "score similarity s.txt": "s.txt is no array file",
    "score ranking": "LISTS",
    "rescore r.json": "r.json is not a record",
    "caption . --beam 0": '"0" for --beam.*>= 1',
    "caption . --beam -2": '"-2" for --beam.*>= 1',
    "caption . --temperature 0": '"0.0" for --temperature.*> 0',
    "caption a.png --temperature 1 --beam 3": "--beam searches and --temperature draws: give one of them",
    "caption . --n-best 0": '"0" for --n-best.*>= 1',
    "caption . --attention a.png": "--attention draws one image, and . is a folder",
    "caption . --sheet a.svg": r"cannot draw a\.svg: name a file that ends in \.png",
    "align a.png ball --out a.pdf": r"cannot draw a\.pdf",
    "align a.png ball --beta -1": '"-1.0" for --beta.*>= 0',
    "import vsepp a.pth.tar": "--vocabulary",
    "import vsepp a.pth.tar --vocabulary b.json": "cannot read the vocabulary b.json",
    "import karpathy a.pth.tar --vocabulary b.json": "no released checkpoint of karpathy.*show_and_tell, vsepp",
    "datasets export flickr8k out": '"flickr8k".*scenes',
    "datasets export scenes out --images 0": '"0" for --images.*>= 1',
}


@pytest.fixture
def here(monkeypatch, tmp_path) -> Path:
    """An empty working folder, without data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")  # `main` sets it: undone with the test
    monkeypatch.setenv("CAPBENCH_DATA", "")
    return tmp_path


@pytest.mark.fault("option out of range")
@pytest.mark.parametrize("words", REFUSED)
def test_a_refused_command_says_why_in_one_line_and_leaves_nothing(words, here, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["capbench", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    (line,) = printed.err.splitlines()
    assert re.search(REFUSED[words], line)
    assert not list(here.iterdir())


@pytest.mark.fault("output that is not UTF-8")
def test_each_data_set_is_listed_in_whole_lines_on_a_narrow_terminal_that_lacks_some_letters(tmp_path):
    folder = tmp_path / "a folder" / "of a long name → with an arrow in it"
    done = run("datasets", cwd=tmp_path, CAPBENCH_DATA=str(folder), COLUMNS="40", PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert tuple(line for line in lines if not line.startswith(" ")) == NAMES
    assert "  3,750 images, 18,750 captions: 3,000 train / 250 val / 500 test" in lines
    (flickr30k,) = (line for line in lines if str(folder / "flickr30k").replace("→", "\\u2192") in line)
    assert SPLIT_FILES in flickr30k


def test_features_and_probes_are_made_on_the_device_of_runs(here, monkeypatch):
    """With the fingerprint of another device they would be made once more."""
    seen = []

    def made(dataset, encoder, *_, **__):
        seen.append(encoder.mean.device.type)
        raise CapbenchError("enough")

    monkeypatch.setattr("capbench.runs.materials.default_device", lambda: torch.device("meta"))
    monkeypatch.setattr("capbench.vision.features.features", made)
    monkeypatch.setattr("capbench.tools.probe.features", made)
    for words in (["features", "scenes"], ["probe", "scenes", "--dataset", "scenes", "--out", str(here)]):
        with pytest.raises(CapbenchError, match="enough"):
            app(words, exit_on_error=False, print_error=False, result_action="return_value")
    assert seen == ["meta", "meta"]


def test_the_shape_and_the_place_of_features_are_told(here, monkeypatch, capsys):
    monkeypatch.setenv("CAPBENCH_CACHE", str(here / "cache"))
    monkeypatch.setattr("capbench.data.datasets.load_dataset", lambda name: scenes(train=2, val=1, test=1))
    for words, shape in ((["--view", "10C"], "(4, 512)"), (["--region-provider", "multiscale"], "(4, 20, 512)")):
        app(["features", "scenes", *words], result_action="return_value")
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{shape} float32 in {here / 'cache' / 'features'}")


def test_export_writes_scenes_that_commands_can_use(tmp_path):
    done = run("datasets", "export", "scenes", "out", "--images", "2", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "out/dataset_scenes.json\n"), done.stderr
    assert len(list((tmp_path / "out").rglob("*.png"))) == 6


@pytest.mark.fault("backend of matplotlib that is not there")
def test_a_backend_of_matplotlib_that_is_missing_does_not_matter(tmp_path):
    backend = "import matplotlib.pyplot as plt; print(plt.get_backend())"
    done = run("--version", cwd=tmp_path, MPLBACKEND="module://no_such_backend", after=backend)
    assert done.stdout.split()[-1].lower() == "agg", done.stderr


def test_records_of_runs_are_added_to_the_committed_ones_all_or_by_name(here, capsys):
    paths = [save_result(example(seed=seed), {}, here / "runs" / "records") for seed in range(2)]
    app(["records", "add", paths[1].stem], result_action="return_value")
    assert capsys.readouterr().out == f"leaderboards/results/{paths[1].name}\n"
    app(["records", "add"], result_action="return_value")
    for path in paths:
        assert (here / "leaderboards" / "results" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(CapbenchError, match=r"no record in runs.records 'vsep'"):
        app(["records", "add", "vsep"], result_action="return_value")
    with pytest.raises(CapbenchError, match=r"no record in nowhere/records; name the folder of your runs with --runs"):
        app(["records", "add", "--runs", "nowhere"], exit_on_error=False, result_action="return_value")


@pytest.mark.fault("reader of the output that has gone")
@pytest.mark.parametrize(
    "body", ["print('a line')", "print('x' * 1_000_000)", "say('a line')", "(print('a line'), sys.exit(2))", None]
)
def test_a_command_whose_output_nobody_reads_any_more_ends_quietly(body, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    fake = f"app.app = lambda *_, **__: {body}" if body else ""  # None: the help
    program = f"import sys\nfrom capbench.cli import app, main\nfrom capbench.cli.output import say\n{fake}\nmain()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, "--help"], cwd=tmp_path, env=environment, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_broken_pipe_that_is_not_the_output_is_a_defect_with_its_traceback(tmp_path):
    fake = "from capbench.cli import app\ndef fail(*_, **__): raise BrokenPipeError\napp.app = fail"
    done = run(cwd=tmp_path, before=fake)
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr


def test_words_between_colons_and_brackets_are_printed_as_they_are(monkeypatch, capsys):
    say("a :cat: on /data/run:b:1 [b]")
    table = Table(title="the :cat:")
    table.add_row("a :dog:")
    console.print(table)
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("a :cat: on /data/run:b:1 [b]\n", "the :cat:", "a :dog:"))
    with reporter(True, "of :cat: [b]") as report, byte_bar("a :dog: [b]", 1) as add:
        report(1, 1)
        add(1)

    def refuse(*_, **__):
        raise CapbenchError("no :cow: [b]")

    monkeypatch.setattr("capbench.cli.app.app", refuse)
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().err
    assert all(words in printed for words in ("of :cat: [b]", "a :dog: [b]", "no :cow: [b]"))
    sources = {path.relative_to(ROOT): path.read_text() for path in (ROOT / "capbench").rglob("*.py")}
    assert [str(path) for path, text in sources.items() if "rich.console" in text] == ["capbench/base/console.py"]


def test_work_that_was_stopped_and_saved_exits_with_75(monkeypatch, capsys):
    def stop(*_, **__):
        raise StoppedError

    monkeypatch.setattr("capbench.cli.app.app", stop)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 75
    assert capsys.readouterr().err == "stopped and saved; the same command resumes\n"

    def keep_nothing(*_, **__):
        raise StoppedError("stopped; nothing is kept without --out")

    monkeypatch.setattr("capbench.cli.app.app", keep_nothing)
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "stopped; nothing is kept without --out\n"


@pytest.mark.fault("file or folder that may not be looked at")
def test_a_file_that_the_system_refuses_is_one_line_that_names_it(monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/data/flickr8k/images")

    monkeypatch.setattr("capbench.cli.app.app", refuse)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("capbench: /data/flickr8k/images: Permission denied; see that it is there")
    assert said.count("\n") == 1


@pytest.mark.fault("Ctrl-C while a library is imported")
@pytest.mark.parametrize("module", ["cyclopts", "torch"])
def test_ctrl_c_during_an_import_ends_without_a_traceback(module, tmp_path):
    press = f"""
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
class Press:
    def find_spec(name, *rest):
        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press)"""
    done = run("leaderboard", cwd=tmp_path, before=press)
    assert done.returncode == 128 + signal.SIGINT
    assert "Traceback" not in done.stderr
