"""What a run leaves of its test split is scored again by `capbench score` and gives the metrics of its record."""

from __future__ import annotations

from pathlib import Path

import pytest

from capbench.evidence.records import load_arrays, load_results
from capbench.metrics import captioning, jars
from capbench.runs import harness
from capbench.runs.harness import Places, run
from capbench.runs.job import DESCRIPTION, Job
from capbench.runs.materials import Materials
from capbench.scoring import score as scoring
from capbench.scoring.files import read_captions, read_embeddings, read_similarity
from capbench.scoring.score import score
from capbench.scoring.words import captions_of
from tests.tiny_papers import make_papers_tiny


def silent(job, state, batches):
    """Reports nothing."""


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Every paper tiny, on a few scenes, without Java."""
    dataset = make_papers_tiny(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr("capbench.runs.materials.load_dataset", lambda name: dataset)
    for module in (jars, captioning):
        monkeypatch.setattr(module, "find_java", lambda: None)
    scoring._scorers.clear()
    yield dataset
    scoring._scorers.clear()


def finished(paper: str, preset: str, folder: Path):
    """The folder of a run, its record and arrays."""
    job = Job(paper, preset, "scenes", "scenes", 0)
    places = Places(folder / "runs")
    (path,) = run(job, places, Materials(), silent).records
    (record,) = load_results(path.parent)
    return places.folder(job), record, load_arrays(record, path.parent)


def check(evaluation, record, arrays):
    """Every metric that was computed again is the record's, to the last bit, and so is its array."""
    assert len(evaluation.metrics) >= 11
    assert dict(evaluation.metrics) == {name: record.metrics[name] for name in evaluation.metrics}
    for name in evaluation.arrays.keys() & arrays.keys():
        assert evaluation.arrays[name].tolist() == arrays[name].tolist()


@pytest.mark.parametrize(("preset", "similarity"), [("vsepp-ours", "cosine"), ("vse0", "dot"), ("order0", "order")])
def test_embeddings_of_a_run_give_its_ranks_again(few, tmp_path, preset, similarity):
    folder, record, arrays = finished("vsepp", preset, tmp_path)
    outputs = read_embeddings(folder / "test-embeddings.safetensors")
    check(score(outputs, few.split("test"), similarity=similarity), record, arrays)


def test_similarities_of_the_alignment_model_give_its_ranks_again(few, tmp_path):
    folder, record, arrays = finished("karpathy", "brnn", tmp_path)
    check(score(read_similarity(folder / "test-similarity.safetensors"), few.split("test")), record, arrays)


@pytest.mark.parametrize(
    ("paper", "preset"),
    [("show_and_tell", "nic-ours"), ("show_attend_tell", "soft-ours"), ("translational", "gru"), ("karpathy", "rnn")],
)
def test_captions_of_a_run_give_its_metrics_again(few, tmp_path, paper, preset):
    folder, record, arrays = finished(paper, preset, tmp_path)
    outputs = read_captions(folder / "test-captions.json")
    assert list(outputs.captions) == captions_of(record, arrays, few)
    check(score(outputs, few.split("test")), record, arrays)


def test_outputs_of_an_earlier_snapshot_go_before_another_is_trained(few, tmp_path, monkeypatch):
    """A run that is killed before its test leaves none, rather than those of another model."""
    folder, *_ = finished("vsepp", "vse0", tmp_path)
    assert (folder / "test-embeddings.safetensors").exists()

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        run(Job("vsepp", "vse0", "scenes", "scenes", 0), Places(tmp_path / "runs"), Materials(), silent, fresh=True)
    assert not (folder / "test-embeddings.safetensors").exists()
    assert not (folder / DESCRIPTION).exists()
