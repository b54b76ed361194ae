"""From a preset to a record: on a few embedded scenes, through the command line and below it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from capbench import leaderboard
from capbench.base.errors import CapbenchError, StoppedError
from capbench.base.processor import blas, computes_bf16, instruction_set
from capbench.cli.leaderboard import leaderboard as leaderboard_command
from capbench.cli.records import add as add_record
from capbench.cli.run import run as run_command
from capbench.data import datasets
from capbench.data.scenes import scenes
from capbench.data.vocabulary import Vocabulary
from capbench.evidence.records import add_records, load_arrays, load_results, save_result
from capbench.evidence.results import Results
from capbench.runs import harness, loaded
from capbench.runs import paper as registry
from capbench.runs.harness import Places, run
from capbench.runs.job import Job, description
from capbench.runs.loaded import finished_runs, load_run
from capbench.runs.materials import Materials, default_device
from capbench.runs.paper import Paper, paper, papers
from capbench.training import checkpoint
from capbench.training.experiment import Evaluation
from reproductions.vsepp.recipe import presets as vsepp_presets
from tests.processes import begin
from tests.tiny_papers import make_papers_tiny

ROOT = Path(__file__).parent.parent


def silent(job, state, batches):
    """Reports nothing."""


FEW = {"seed": 5, "train": 60, "val": 15, "test": 20}


@pytest.fixture
def small_scenes():
    return scenes(**FEW)


@pytest.fixture
def few(monkeypatch, tmp_path) -> Paper:
    return few_scenes(monkeypatch, tmp_path)


def few_scenes(monkeypatch, folder: Path) -> Paper:
    """VSE++ on a few scenes, three epochs of a tiny model."""
    original, drawn = registry.papers()["vsepp"], scenes(**FEW)

    def presets(dataset):
        return {name: tiny(recipe) for name, recipe in original.presets("scenes").items()}

    def tiny(recipe):
        training = replace(recipe.training, epochs=3, batch_size=32)
        return replace(recipe, embedding_dim=16, word_dim=8, training=training, warmup=recipe.warmup // 2)

    small = replace(original, presets=presets)
    for module in (harness, loaded):
        monkeypatch.setattr(module, "paper", lambda name: small)
    monkeypatch.setattr("capbench.runs.materials.load_dataset", lambda name: drawn)
    monkeypatch.setenv("CAPBENCH_CACHE", str(folder / "cache"))
    return small


def places(folder: Path) -> Places:
    return Places(folder / "runs")


def job(preset: str = "vsepp-ours", seed: int = 0) -> Job:
    return Job("vsepp", preset, "scenes", "scenes", seed)


def numbers(folder: Path):
    """What must be equal between equal runs: metrics, ranks, curve without seconds."""
    (result,) = load_results(places(folder).records)
    arrays = load_arrays(result, places(folder).records)
    curve = [entry.model_dump(exclude={"seconds"}) for entry in result.curve]
    return result.metrics, {name: value.tolist() for name, value in arrays.items()}, curve


@pytest.mark.parametrize(
    "preset", ["vse0", "vsepp", "order0", "orderpp", "vsepp-10C", "vsepp-RC", "vsepp-negatives-4-ours", "vsepp-ours"]
)
def test_every_kind_of_preset_trains_and_is_recorded(few, tmp_path, preset):
    (path,) = run(job(preset), places(tmp_path), Materials(), silent).records
    (result,) = load_results(path.parent)
    assert (result.preset, result.dataset, result.seed, result.protocol) == (preset, "scenes", 0, "whole")
    assert result.recipe == json.loads(json.dumps(asdict(few.recipe(preset, "scenes"))))
    assert len(result.curve) == 3
    assert result.metrics["rsum"] == pytest.approx(
        sum(value for name, value in result.metrics.items() if name.endswith(("_r1", "_r5", "_r10")))
    )
    arrays = load_arrays(result, path.parent)
    assert len(arrays["image_to_caption"]) == 20
    assert len(arrays["caption_to_image"]) == len(arrays["image_of_caption"]) == 100
    r1 = 100 * np.mean(arrays["caption_to_image"] < 1)
    assert result.metrics["caption_to_image_r1"] == pytest.approx(r1)


def test_a_record_says_what_it_was_computed_with_and_on_what(few, tmp_path):
    (path,) = run(job(), places(tmp_path), Materials(), silent).records
    (result,) = load_results(path.parent)
    device = default_device()
    on_cpu = device.type == "cpu"
    assert result.instruction_set == (instruction_set() if on_cpu else "")
    assert result.blas == (blas() if on_cpu else "")
    assert result.precision == ("bf16" if computes_bf16(device) else "fp32")
    assert (result.published, result.images) == (None, 20)


@pytest.mark.parametrize(
    ("precision", "native", "said"), [("auto", True, "bf16"), ("auto", False, "fp32"), ("full", True, "fp32")]
)
def test_the_precision_is_what_training_computes_in_and_not_what_the_recipe_allows(
    few, monkeypatch, precision, native, said
):
    monkeypatch.setattr(harness, "computes_bf16", lambda device: native)
    training = replace(few.recipe("vse0", "scenes").training, precision=precision)
    assert harness._precision(training, torch.device("cpu")) == said


def test_a_folder_that_is_not_the_published_split_takes_no_place_and_is_not_judged(
    few, tmp_path, monkeypatch, small_scenes
):
    run(job(), places(tmp_path / "one"), Materials(), silent)
    (made,) = load_results(places(tmp_path / "one").records)
    results = places(tmp_path).records
    published = {"dataset": "flickr8k", "dataset_fingerprint": datasets.known_fingerprint("flickr8k")}
    for seed in range(3):
        save_result(made.model_copy(update=published | {"seed": seed, "arrays": None}), {}, results)
    before = Results.load(results)
    board = leaderboard.board(few, before).rows

    monkeypatch.setattr("capbench.runs.materials.load_dataset", lambda name: replace(small_scenes, name=name))
    (path,) = run(replace(job(), dataset="flickr8k"), places(tmp_path), Materials(), silent).records
    (mine,) = [record for record in load_results(results) if record.file == path.name]
    assert (mine.published, mine.images, mine.dataset_fingerprint) == (False, 20, small_scenes.fingerprint)

    after = leaderboard.board(few, Results.load(results))
    assert {row.verdict for row in board} >= {"short", "pending"}
    assert [row for row in after.rows if row.dataset_fingerprint != small_scenes.fingerprint] == list(board)
    apart = [row for row in after.rows if row.dataset_fingerprint == small_scenes.fingerprint]
    assert {(row.verdict, row.reported) for row in apart} == {("not reported", "")}
    page = leaderboard.render(after)["vsepp.md"].decode()
    assert "## flickr8k, not the published split: 20 test images, data set" in page


def test_fine_tuning_starts_from_the_fixed_model_and_moves_the_encoder(few, tmp_path):
    (path,) = run(job("vsepp-ft"), places(tmp_path), Materials(), silent).records
    assert sorted(r.preset for r in load_results(path.parent)) == ["vsepp", "vsepp-ft"]
    loaded = load_run(places(tmp_path).folder(job("vsepp-ft")))
    from capbench.vision.encoders import Encoder

    fresh = Encoder("scenes").state_dict()
    assert any(not np.array_equal(fresh[name].numpy(), value.numpy()) for name, value in loaded.encoder_weights.items())


def test_the_same_job_in_two_places_gives_the_same_metrics(few, tmp_path):
    first = run(job(), places(tmp_path / "a"), Materials(), silent)
    again = run(job(), places(tmp_path / "b"), Materials(), silent)
    assert first.records != again.records
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")


def never(job, state, batches):
    pytest.fail("training has begun")


def test_a_finished_job_is_not_trained_again_and_says_when_it_finished(few, tmp_path):
    first = run(job(), places(tmp_path), Materials(), silent)
    again = run(job(), places(tmp_path), Materials(), never)
    assert (first.trained, again.trained) == (True, False)
    assert (again.records, again.date) == (first.records, first.date)
    assert first.date.startswith(load_results(places(tmp_path).records)[0].started[:10])


def changed(preset: str = "vsepp-ours", **overrides) -> Job:
    return replace(job(preset), overrides=overrides)


def test_a_recipe_set_by_hand_has_a_folder_and_records_of_its_own_and_is_finished_once(few, tmp_path):
    run(job(), places(tmp_path), Materials(), silent)
    by_hand = replace(job(), overrides={"margin": 0.1, "training.learning_rate": 1e-3})
    first = run(by_hand, places(tmp_path), Materials(), silent)
    assert not run(by_hand, places(tmp_path), Materials(), never).trained
    assert not run(job(), places(tmp_path), Materials(), never).trained
    assert run(changed(margin=0.3), places(tmp_path), Materials(), silent).trained
    (record,) = (r for r in load_results(places(tmp_path).records) if r.file == first.records[0].name)
    assert (record.preset, record.overrides) == ("vsepp-ours", by_hand.overrides)
    assert record.recipe == json.loads(json.dumps(asdict(few.recipe("vsepp-ours", "scenes", by_hand.overrides))))
    assert record.recipe["margin"] == 0.1
    assert record.command == f"{job().command} --set margin=0.1 --set training.learning_rate=0.001"
    results = Results.load(places(tmp_path).records)
    assert len(results.latest.records) == 3
    assert [r.overrides for r in results.plain.records] == [{}]
    with pytest.raises(CapbenchError, match="records of 3 settings cannot be pooled"):
        results.values("rsum")
    loaded_run = load_run(places(tmp_path).folder(by_hand))
    assert (loaded_run.recipe.margin, loaded_run.job) == (0.1, by_hand)


def test_a_run_that_finished_before_recipes_could_be_set_by_hand_is_not_trained_again(few, tmp_path):
    run(job(), places(tmp_path), Materials(), silent)
    path = places(tmp_path).folder(job()) / "run.json"
    document = json.loads(path.read_text())
    assert document["identity"]["job"].pop("overrides") == {}
    path.write_text(json.dumps(document))
    assert not run(job(), places(tmp_path), Materials(), never).trained
    assert load_run(path.parent).job == job()


@pytest.mark.parametrize("preset", ["brnn-ours", "rnn-ours", "nic-ours", "soft-ours", "gru", "vsepp-ours"])
def test_in_every_paper_a_recipe_starts_with_the_weights_of_the_preset_that_it_names(preset, tmp_path, monkeypatch):
    drawn = make_papers_tiny(monkeypatch, tmp_path)
    monkeypatch.setattr("capbench.runs.materials.load_dataset", lambda _: drawn)
    owner = next(each for each in papers().values() if preset in each.presets("scenes"))
    recipe = owner.recipe(preset, "scenes", {"init_from": preset})
    inputs = Materials().inputs(Job(owner.name, preset, "scenes", "scenes", 0), recipe)
    plain = owner.model(recipe, inputs.vocabulary, inputs.features.array.shape[-1])
    trained = {name: torch.full_like(value, 3) for name, value in plain.state_dict().items()}
    made = owner.prepare(recipe, replace(inputs, init=(trained,)), 0, torch.device("cpu"))
    assert all(torch.equal(value, trained[name]) for name, value in made.model.state_dict().items())
    with pytest.raises(CapbenchError, match=f"the run of {preset} holds the weights of another.*set another init_from"):
        owner.prepare(recipe, replace(inputs, init=({},)), 0, torch.device("cpu"))


def test_a_record_counts_the_images_and_captions_that_its_protocol_scores(few, tmp_path, monkeypatch):
    monkeypatch.setattr("capbench.metrics.retrieval.FOLD", 5)
    partly = replace(few, protocols=lambda dataset, recipe: ("1K", "whole"))
    monkeypatch.setattr(harness, "paper", lambda name: partly)
    run(job(), places(tmp_path), Materials(), silent)
    found = {record.protocol: record for record in load_results(places(tmp_path).records)}
    assert {protocol: record.images for protocol, record in found.items()} == {"1K": 5, "whole": 20}
    assert found["1K"].notes[0].startswith("5 images, 25 captions (5 each)")


def test_the_preset_that_another_starts_from_keeps_its_own_recipe(few, tmp_path):
    run(changed("vsepp-ft", margin=0.1), places(tmp_path), Materials(), silent)
    found = {record.preset: record for record in load_results(places(tmp_path).records)}
    assert (found["vsepp"].overrides, found["vsepp"].recipe["margin"]) == ({}, 0.2)
    assert (found["vsepp-ft"].overrides, found["vsepp-ft"].recipe["margin"]) == ({"margin": 0.1}, 0.1)


def test_an_unknown_metric_set_by_hand_is_refused_before_any_work(few, tmp_path):
    with pytest.raises(CapbenchError, match="no validation metric 'rsun'; did you mean 'rsum'"):
        run(changed(metric="rsun"), places(tmp_path), Materials(), silent)
    assert not places(tmp_path).runs.exists()


@pytest.mark.parametrize("reason", ["fresh", "no record", "no snapshot", "another recipe"])
def test_a_finished_job_is_trained_again_when(few, tmp_path, monkeypatch, reason):
    first = run(job(), places(tmp_path), Materials(), silent)
    if reason == "no record":
        first.records[0].unlink()
    if reason == "no snapshot":
        (places(tmp_path).folder(job()) / "best.safetensors").unlink()
    if reason == "another recipe":
        changed = replace(few, presets=lambda name: {k: replace(r, margin=0.3) for k, r in few.presets(name).items()})
        monkeypatch.setattr(harness, "paper", lambda name: changed)
    again = run(job(), places(tmp_path), Materials(), silent, fresh=reason == "fresh")
    assert again.trained
    assert again.records != first.records


MOMENTS = {  # what a run does last, in its order
    "the record": ("save_result", "after"),
    "the vocabulary": ("Vocabulary.save", "after"),
    "its description": ("describe", "after"),
    "its checkpoints": ("_clear", "before"),
}


def run_until_killed(folder: Path, told: Connection) -> None:
    with pytest.MonkeyPatch.context() as patch:
        few_scenes(patch, folder)
        name, when = MOMENTS[(folder / "moment").read_text()]
        owner, attribute = (Vocabulary, "save") if "." in name else (harness, name)
        original = getattr(owner, attribute)

        def killed(*words, **named):
            if when == "after":
                original(*words, **named)
            os.kill(os.getpid(), signal.SIGKILL)

        patch.setattr(owner, attribute, killed)
        run(job(), places(folder), Materials(), silent)


@pytest.mark.fault("kill -9 between the writing of a record and the end of the run")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_between_its_record_and_its_end_leaves_one_record(few, tmp_path, moment):
    (tmp_path / "moment").write_text(moment)
    process, heard = begin(run_until_killed, tmp_path)
    process.join()
    heard.close()
    assert process.exitcode == -signal.SIGKILL
    (record,) = places(tmp_path).records.glob("*.json")
    content = record.read_bytes()
    assert run(job(), places(tmp_path), Materials(), never).records == (record,)
    assert record.read_bytes() == content
    assert load_run(places(tmp_path).folder(job())).job == job()
    assert not list(places(tmp_path).folder(job()).glob("checkpoint-*"))


@pytest.mark.fault("signal during the scoring of the test split")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"])
def test_a_signal_during_the_test_evaluation_stops_at_once_and_the_next_start_ends_the_run(
    few, tmp_path, monkeypatch, name
):
    def interrupted(self, protocol):
        os.kill(os.getpid(), getattr(signal, name))
        pytest.fail("the signal was not heard")

    whole = run(job(), places(tmp_path / "whole"), Materials(), silent)
    with monkeypatch.context() as patch:
        patch.setattr("reproductions.vsepp.experiment.VSEExperiment.test", interrupted)
        with pytest.raises(StoppedError):
            run(job(), places(tmp_path), Materials(), silent)
    assert not list(places(tmp_path).records.glob("*.json"))
    assert run(job(), places(tmp_path), Materials(), never).trained
    assert numbers(tmp_path) == numbers(tmp_path / "whole")
    assert len(whole.records) == 1


@pytest.mark.fault("signal while the record is written")
def test_a_signal_while_the_record_is_written_waits_for_its_end(few, tmp_path, monkeypatch):
    def signalled(*words):
        os.kill(os.getpid(), signal.SIGTERM)
        return save_result(*words)

    with monkeypatch.context() as patch:
        patch.setattr(harness, "save_result", signalled)
        with pytest.raises(StoppedError):
            run(job(), places(tmp_path), Materials(), silent)
    (record,) = places(tmp_path).records.glob("*.json")
    again = run(job(), places(tmp_path), Materials(), never)
    assert (again.records, again.trained) == ((record,), False)


def test_test_scores_that_are_not_finite_are_refused_and_not_recorded(few, tmp_path, monkeypatch):
    monkeypatch.setattr("reproductions.vsepp.experiment.VSEExperiment.test", lambda *_: Evaluation({"rsum": 1e308}, {}))
    with pytest.raises(CapbenchError, match=r"rsum is 1e\+308 on test under whole"):
        run(job(), places(tmp_path), Materials(), silent)
    assert not list(places(tmp_path).records.glob("*.json"))


@pytest.mark.fault("temporary files of a save that was killed")
def test_what_a_killed_save_left_is_gone_after_the_next_start(few, tmp_path):
    folder, records = places(tmp_path).folder(job()), places(tmp_path).records
    for place in (folder, records):
        place.mkdir(parents=True)
    (folder / ".best.safetensors.1a2b3c4d.tmp").write_bytes(b"half")
    (records / ".other.npz.1a2b3c4d.tmp").write_bytes(b"another process is writing")
    (records / ".old.npz.1a2b3c4d.tmp").write_bytes(b"half")
    os.utime(records / ".old.npz.1a2b3c4d.tmp", (0, 0))
    run(job(), places(tmp_path), Materials(), silent)
    assert not list(folder.glob("*.tmp"))
    assert [path.name for path in records.glob(".*")] == [".other.npz.1a2b3c4d.tmp"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "vse3"}, "no vsepp preset 'vse3'"),
        ({"encoder": "resnet5"}, "resnet5"),
        ({"seed": -1}, "the seed is -1"),
        ({"dataset": "flickr8k"}, "CAPBENCH_DATA"),
    ],
)
def test_a_refused_job_leaves_no_folder(few, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr("capbench.runs.materials.load_dataset", datasets.load_dataset)
    monkeypatch.delenv("CAPBENCH_DATA", raising=False)
    with pytest.raises(CapbenchError, match=message):
        run(replace(job(), **changes), places(tmp_path), Materials(), never)
    assert not (tmp_path / "runs").exists()


def test_a_run_of_schema_1_is_read_under_the_names_of_today(tmp_path):
    recipe = {"start_from": None, "training": {"average": 0.9}, "keep_bias": 3.0, "crop": "views"}
    old = {"job": asdict(job("vsepp-small")), "recipe": recipe, "vocabulary": "v", "feature_dim": 9}
    (tmp_path / "run.json").write_text(json.dumps(old | {"made_from": {"dataset": "d"}}))
    described = description(tmp_path)
    assert (described.job.preset, described.feature_dim, described.records) == ("vsepp-ours", 9, ())
    named = described.identity["recipe"]
    assert (named["update_gate_bias"], named["view"], named["training"]) == (3.0, "views", {"ema_decay": 0.9})
    assert (described.identity["vocabulary"], described.identity["dataset"]) == ("v", "d")


def test_a_job_stopped_and_started_again_ends_with_the_same_record(few, tmp_path):
    def stop(job, state, batches):
        if state.steps == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    run(job(), places(tmp_path / "whole"), Materials(), silent)
    with pytest.raises(StoppedError):
        run(job(), places(tmp_path / "stopped"), Materials(), stop)
    run(job(), places(tmp_path / "stopped"), Materials(), silent)
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")


@pytest.mark.fault("changed recipe at a resume")
def test_another_recipe_is_refused_until_the_run_is_started_anew(few, tmp_path, monkeypatch):
    def stop(job, state, batches):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError):
        run(job(), places(tmp_path), Materials(), stop)
    changed = replace(few, presets=lambda name: {k: replace(r, margin=0.3) for k, r in few.presets(name).items()})
    monkeypatch.setattr(harness, "paper", lambda name: changed)
    with pytest.raises(CapbenchError, match=r"recipe\.margin: 0\.3 here, 0\.2 in the checkpoint"):
        run(job(), places(tmp_path), Materials(), silent)
    run(job(), places(tmp_path), Materials(), silent, fresh=True)


@pytest.mark.fault("file in the place of the output folder")
def test_a_read_only_place_is_refused_before_any_work(few, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "records").write_text("a file stands here")
    with pytest.raises(CapbenchError, match="cannot write to"):
        run(job(), places(tmp_path), Materials(), never)


def test_a_finished_run_or_a_checkpoint_of_another_job_of_the_same_name_stays(few, tmp_path):
    other = Job("vsepp", "vsepp", "ours-scenes", "scenes", 0)
    assert other.name == job().name
    run(job(), places(tmp_path), Materials(), silent)
    folder = places(tmp_path).folder(job())
    for kept in ("run", "checkpoint"):
        if kept == "checkpoint":
            (folder / "run.json").unlink()
            checkpoint.save_step(folder, 1, {}, {"identity": {"job": asdict(job())}})
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        with pytest.raises(
            CapbenchError, match=r"keeps another run, vsepp vsepp-ours on scenes.*another --runs folder"
        ):
            run(other, places(tmp_path), Materials(), never, fresh=True)
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.fault("two trainings in one folder")
def test_a_folder_in_use_is_refused_and_stays_locked(few, tmp_path):
    folder = places(tmp_path).folder(job())
    with harness.claimed(job(), places(tmp_path)):
        with pytest.raises(CapbenchError, match="another process"):
            run(job(), places(tmp_path), Materials(), never)
        assert (folder / harness.LOCK).exists()


def test_a_finished_run_loads_and_is_found(few, tmp_path):
    run(job(), places(tmp_path), Materials(), silent)
    (folder,) = finished_runs(places(tmp_path).runs)
    loaded = load_run(folder)
    assert loaded.job == job()
    assert not list(folder.glob("checkpoint-*"))


@pytest.mark.fault("checkpoint of another architecture or vocabulary")
def test_a_snapshot_of_another_vocabulary_or_architecture_says_what_differs(few, tmp_path):
    run(job(), places(tmp_path), Materials(), silent)
    (folder,) = finished_runs(places(tmp_path).runs)
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    checkpoint.save(folder / "best.safetensors", {"W_f.weight": torch.zeros(2, 3)}, {})
    with pytest.raises(CapbenchError, match=r"best\.safetensors .*W_f\.weight \[2, 3\] for \[16, 512\]"):
        load_run(folder)
    vocabulary["words"][0] = "another"
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary))
    with pytest.raises(CapbenchError, match=r"vocabulary\.json is not the vocabulary of this run"):
        load_run(folder)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(CapbenchError, match=r"run\.json"):
        load_run(tmp_path)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(CapbenchError, match="vse0, vsepp"):
        paper("vsepp").recipe("vse3", "scenes")


def test_vsepp_is_discovered():
    assert "vsepp" in papers()
    with pytest.raises(CapbenchError, match="vsepp"):
        paper("vse-plus")


def test_the_published_recipes_are_those_of_the_paper():
    for name in ("vse0", "vsepp"):
        recipe = vsepp_presets("flickr8k")[name]
        assert (recipe.margin, recipe.embedding_dim, recipe.word_dim, recipe.min_count) == (0.2, 1024, 300, 4)
        training = recipe.training
        assert (training.epochs, training.batch_size, training.learning_rate) == (30, 128, 2e-4)
        assert (training.lr_step_epochs, training.lr_decay, training.clip_norm) == (15, 0.1, 2.0)
    assert vsepp_presets("flickr8k")["vse0"].similarity == "dot"


@pytest.fixture
def reproduce(few, tmp_path, monkeypatch, capsys):
    """`capbench run vsepp` on a few scenes, in a folder of its own: what it says at the end."""
    monkeypatch.setattr(registry, "papers", lambda: {"vsepp": few})

    def run_once(*presets: str, **more) -> list[str]:
        options = {"runs": tmp_path / "runs", "leaderboards": tmp_path / "leaderboards"}
        run_command("vsepp", preset=list(presets), seed=0, **more, **options)
        return capsys.readouterr().out.splitlines()

    return run_once


def test_a_run_ends_with_its_agreement_with_the_committed_records(reproduce, tmp_path):
    nothing = "no committed record to compare with"
    assert nothing in reproduce("vse0-ours")
    (made,) = places(tmp_path).records.glob("*.json")
    (committed,) = add_records([made], tmp_path / "leaderboards" / "results")

    lines = reproduce("vse0-ours")
    assert any("done already, on 20" in line for line in lines)
    (line,) = (line for line in lines if line.startswith("vse0-ours: "))
    assert line.startswith("vse0-ours: agrees with the committed records (rsum ")
    assert ["vse0-ours", "agrees"] in [line.split()[:2] for line in lines]
    assert nothing not in lines

    committed.write_text(json.dumps(json.loads(committed.read_text()) | {"metrics": {"rsum": 599.0}}))
    lines = reproduce("vse0-ours", fresh=True)
    assert not any("done already" in line for line in lines)
    (line,) = (line for line in lines if line.startswith("vse0-ours: "))
    assert line.startswith("vse0-ours: differs from the committed records: rsum 599.0 ± 4.8 there, ")
    assert line.endswith(" here (seed 0)")
    assert ["vse0-ours", "differs"] in [line.split()[:2] for line in lines]


def test_a_preset_changed_by_hand_has_a_row_of_its_own_and_agrees_with_nothing(reproduce, tmp_path):
    reproduce("vse0-ours")
    add_record(runs=places(tmp_path).runs, leaderboards=tmp_path / "leaderboards")
    lines = reproduce("vse0-ours", assignments=["margin=0.1"])
    assert "no committed record to compare with" in lines
    assert sum("vse0-ours, margin=0.1" in line for line in lines) >= 2  # the job, and its row
    page = (tmp_path / "leaderboards" / "vsepp.md").read_text(encoding="utf-8")
    assert "`vse0-ours`" in page
    assert "`vse0-ours, margin=0.1`" in page


def test_own_records_never_touch_the_committed_ones_and_are_added_on_request(reproduce, few, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "papers", lambda: {"vsepp": few})
    reproduce("vse0-ours")
    folder = tmp_path / "leaderboards"
    assert not (folder / "results").exists()
    assert "this machine" in (folder / "vsepp.md").read_text(encoding="utf-8")
    with pytest.raises(CapbenchError, match="has no record"):
        leaderboard_command(leaderboards=folder)
    add_record(runs=places(tmp_path).runs, leaderboards=folder)
    leaderboard_command(leaderboards=folder)
    page = (folder / "vsepp.md").read_text(encoding="utf-8")
    assert "this machine" not in page
    assert "| scenes, whole | `vse0-ours`" in page
    leaderboard_command(check=True, leaderboards=folder)


def test_the_page_is_written_before_anything_that_the_terminal_may_refuse(reproduce, tmp_path, monkeypatch):
    def refuse(*_: object) -> list[object]:
        raise OSError("no terminal")

    monkeypatch.setattr(leaderboard, "closing", refuse)
    with pytest.raises(OSError, match="no terminal"):
        reproduce("vse0-ours")
    assert "this machine" in (tmp_path / "leaderboards" / "vsepp.md").read_text(encoding="utf-8")


def command(*words: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CAPBENCH_CACHE": str(cwd / "cache")}
    program = "import sys; from capbench.cli import main; sys.argv[0] = 'capbench'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *words], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_bad_input_ends_with_one_message_and_exit_code_two(tmp_path):
    process = command("run", "vsepp", "--dataset", "nowhere", cwd=tmp_path)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "nowhere" in error
    assert "Traceback" not in error


@pytest.mark.fault("SIGTERM to a command that trains")
def test_sigterm_saves_and_ends_with_exit_code_75(tmp_path):
    process = command("run", "vsepp", "--preset", "vse0", "--seeds", "1", cwd=tmp_path)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "runs").rglob("checkpoint-*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.2)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 75, (output, error)
    assert "same command" in error
    assert not list((tmp_path / "runs" / "records").glob("*.json"))
