"""The jobs of one command, and how a stopped command finds those that are left."""

from __future__ import annotations

from pathlib import Path

import pytest

from capbench.base.errors import CapbenchError
from capbench.runs.job import Job
from capbench.runs.paper import paper
from capbench.runs.plan import Session, plan


def settings(jobs: list[Job]) -> list[tuple[str, str, int]]:
    return [(job.encoder, job.preset, job.seed) for job in jobs]


def test_a_plan_without_presets_runs_the_headline_ones_with_each_seed():
    jobs = plan(paper("vsepp"), "scenes", seeds=2)
    names = paper("vsepp").headline
    assert settings(jobs) == [("scenes", name, seed) for seed in (0, 1) for name in names]


def test_all_stands_for_every_preset():
    everything = {job.preset for job in plan(paper("vsepp"), "scenes", ["all"], seeds=1)}
    assert everything == set(paper("vsepp").presets("scenes"))


def test_photographs_are_encoded_by_efficientnet_lite2_unless_others_are_named():
    assert {job.encoder for job in plan(paper("vsepp"), "flickr8k", ["vse0"])} == {"timm/tf_efficientnet_lite2"}
    assert settings(plan(paper("vsepp"), "flickr8k", ["vse0"], ["vgg19", "resnet152"], seed=4)) == [
        ("vgg19", "vse0", 4),
        ("resnet152", "vse0", 4),
    ]


def test_a_preset_or_encoder_that_is_named_twice_runs_once():
    made = plan(paper("vsepp"), "scenes", ["vse0", "vsepp", "vse0"], ["scenes", "vgg19", "scenes"], seed=0)
    assert [(job.encoder, job.preset) for job in made] == [
        ("scenes", "vse0"), ("scenes", "vsepp"), ("vgg19", "vse0"), ("vgg19", "vsepp"),
    ]  # fmt: skip


def test_an_ensemble_runs_once_for_every_seeds_that_it_joins_and_after_the_single_models():
    owner = paper("show-and-tell")
    sizes = {name: recipe.ensemble_size for name, recipe in owner.presets("scenes").items()}
    ensemble = next(name for name, size in sizes.items() if size > 1)
    single = next(name for name, size in sizes.items() if size == 1)
    jobs = plan(owner, "scenes", [ensemble, single], seeds=2 * sizes[ensemble])
    assert [(job.preset, job.seed) for job in jobs][-2:] == [(ensemble, 0), (ensemble, 1)]
    assert [job.preset for job in jobs[:-2]] == [single] * (2 * sizes[ensemble])
    assert [job.seed for job in plan(owner, "scenes", [ensemble], seeds=1)] == [0]
    assert [job.seed for job in plan(owner, "scenes", [ensemble], seed=7)] == [7]


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(CapbenchError, match=r"no vsepp preset 'vse3'.*vse0, vsepp"):
        plan(paper("vsepp"), "scenes", ["vse0", "vse3"])


def test_two_encoders_that_would_share_a_folder_are_refused():
    with pytest.raises(
        CapbenchError, match=r"file/a-b.* and .*file/a_b.* would both be kept in vsepp/vse0-flickr8k-file"
    ):
        plan(paper("vsepp"), "flickr8k", ["vse0"], ["file/a-b", "file/a_b"])


@pytest.fixture
def jobs() -> list[Job]:
    return [Job("vsepp", "vse0", "scenes", "scenes", seed) for seed in range(2)]


def test_a_stopped_session_resumes_with_the_next_job_and_remembers_its_records(jobs, tmp_path):
    file = tmp_path / "session.json"
    Session(file, jobs, fresh=True).add(jobs[0], [Path("results/one.json")])
    resumed = Session(file, jobs, fresh=True)
    assert resumed.remaining() == jobs[1:]
    resumed.add(jobs[1], [Path("results/two.json")])
    assert (resumed.remaining(), resumed.records) == ([], ["one.json", "two.json"])
    resumed.clear()
    assert Session(file, jobs, fresh=True).remaining() == jobs


def test_without_fresh_no_job_is_skipped_unseen_and_no_other_command_takes_it_for_its_own(jobs, tmp_path):
    file = tmp_path / "session.json"
    plain = Session(file, jobs, fresh=False)
    plain.add(jobs[0], [Path("one.json")])
    assert (plain.records, file.exists()) == (["one.json"], False)
    Session(file, jobs, fresh=True).add(jobs[0], [Path("one.json")])
    assert Session(file, jobs, fresh=False).remaining() == jobs


def test_the_session_of_another_command_is_not_resumed(jobs, tmp_path):
    Session(tmp_path / "session.json", jobs, fresh=True).add(jobs[0], [Path("one.json")])
    other = Session(tmp_path / "session.json", jobs[:1], fresh=True)
    assert (other.remaining(), other.records) == (jobs[:1], [])


@pytest.mark.fault("session file of another shape")
@pytest.mark.parametrize("content", ["[]", "{", '{"jobs": 3}', '{"jobs": [], "done": [[]], "records": []}', "\xff"])
def test_a_session_file_of_another_shape_is_started_anew_and_this_is_said(jobs, tmp_path, content):
    file = tmp_path / "session.json"
    file.write_text(content, encoding="latin-1")
    with pytest.warns(UserWarning, match=r"session\.json.*the command starts with its first job"):
        session = Session(file, jobs, fresh=True)
    assert session.remaining() == jobs
    session.add(jobs[0], [])
    assert Session(file, jobs, fresh=True).remaining() == jobs[1:]
