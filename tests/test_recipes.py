"""Fields of recipes by their dotted names: read from text, set, refused, and explained."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from capbench.base.errors import CapbenchError
from capbench.cli.app import app
from capbench.evidence.records import assignments, load_results
from capbench.metrics.registry import METRICS
from capbench.runs.paper import Paper, paper, papers
from capbench.runs.plan import Session, plan
from capbench.runs.recipes import meaning, overridden, parsed, values
from capbench.training.experiment import Recipe

ROOT = Path(__file__).parents[1]
VSEPP = paper("vsepp").recipe("vsepp-ours", "scenes")


@pytest.mark.parametrize("owner", papers().values(), ids=papers())
@pytest.mark.parametrize("dataset", ["scenes", "flickr8k"])
def test_the_value_of_each_field_of_each_preset_reads_back_from_its_text(owner: Paper, dataset: str):
    for recipe in owner.presets(dataset).values():
        fields = {name: value for name, value in values(recipe).items() if name not in recipe.of_files}
        assert parsed(recipe, assignments(fields)) == {}
        assert overridden(recipe, fields) == recipe


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("training.learning_rate=1e-3", 0.001),
        ("training.learning_rate=1", 1.0),
        ("training.epochs=9", 9),
        ("training.clip_norm=None", None),
        ("training.clip_norm=null", None),
        ("same_image_negatives=True", True),
        ("metric=rsum", "rsum"),
        ("init_from=5", "5"),
        ("input=unit", "unit"),
        ("region_provider=objects", "objects"),
    ],
)
def test_a_text_is_read_as_the_field_s_type(text, value):
    found = parsed(VSEPP, [text])
    assert list(found.values()) == [value]
    assert type(next(iter(found.values()))) is type(value)
    name = text.partition("=")[0]
    changed = values(overridden(VSEPP, found))
    assert changed.pop(name) == value
    assert changed == {field: kept for field, kept in values(VSEPP).items() if field != name}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["training.epoch=3"], r"no field 'training\.epoch'; did you mean training\.epochs.*`capbench show PRESET`"),
        (["learning_rate=3"], r"no field 'learning_rate'; did you mean training\.learning_rate"),
        (["training=3"], "no field 'training'"),
        (["training.learning_rate=fast"], r"training\.learning_rate cannot be 'fast': it should be a valid number"),
        (["training.learning_rate=NaN"], "cannot be nan: it should be a finite number"),
        (["training.learning_rate=0"], r"cannot be 0: it should be greater than 0"),
        (["training.epochs=2.5"], r"training\.epochs cannot be 2\.5: it should be a valid integer"),
        (["training.epochs=true"], "cannot be True: it should be a valid integer"),
        (["training.ema_decay=1"], "cannot be 1: it should be less than 1"),
        (["training.optimizer=lion"], "cannot be 'lion': it should be 'adam', 'sgd' or 'rmsprop'"),
        (["margin="], "margin cannot be '': it should be a valid number"),
        (["margin=0.1", "margin=0.3"], "margin is set twice; give it one value"),
    ],
)
def test_an_unknown_field_and_a_value_that_does_not_fit_are_refused_by_name(texts, said):
    with pytest.raises(CapbenchError, match=said):
        parsed(VSEPP, texts)


def test_a_field_that_files_decide_cannot_be_set():
    recipe = paper("translational").recipe("lstm-glove", "scenes")
    for name in ("embedding_dim", "vectors_sha256"):
        with pytest.raises(CapbenchError, match=f"{name} is decided by the files of this machine"):
            parsed(recipe, [f"{name}=5"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"training.epochs": 1}, "warmup is 1 of 1 epochs.*set training.epochs above warmup"),
        ({"ensemble_size": 2}, "ensemble_size is 2, and this paper makes no use of it; leave it at 1"),
        ({"init_from": "vsep"}, "no vsepp preset to start from 'vsep'; did you mean 'vsepp'"),
        ({"margins": 1.0}, "the recipe has no field 'margins'; did you mean margin"),
        ({"finetune": True}, "finetune takes random crops, and view is whole; set view to RC"),
        ({"metric": "rsun"}, "no validation metric 'rsun'; did you mean 'rsum'.*image_to_caption_r1"),
        ({"metric": "image_to_caption_median_rank"}, "no validation metric 'image_to_caption_median_rank'"),
    ],
)
def test_recipes_that_cannot_run_are_refused_before_anything_is_made(overrides, said):
    with pytest.raises(CapbenchError, match=said):
        paper("vsepp").recipe("vsepp-ours", "scenes", overrides)


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("nic-ours", {"ensemble_size": 2}, "init_from names no preset to join; set ensemble_size to 1"),
        ("nic-ensemble-ours", {"min_count": 20}, "min_count is 20, and 5 in nic-ours, from which this starts"),
        ("nic-ensemble-ours", {"hidden_dim": 64}, r"nic-ours: its lstm.* is \[512, 128\] there, and here \[256, 128\]"),
        ("vsepp-ft", {"embedding_dim": 512}, r"vsepp: its W_f.weight is \[128, 8\] there, and here \[512, 8\]"),
        ("vsepp-ours", {"init_from": "vsepp-ft"}, "vsepp-ft has an encoder of its own"),
        ("vsepp", {"output": "grid"}, "output cannot be 'grid': it should be 'vector'"),
        ("soft-ours", {"output": "vector"}, "output cannot be 'vector': it should be 'grid' or 'regions'"),
        (
            "soft-ours",
            {"ensemble_size": 3, "init_from": "soft-ours"},
            "ensemble_size is 3, and this paper makes no use",
        ),
        ("soft-ours", {"finetune": True}, "finetune is True, and this paper makes no use of it; leave it at False"),
        ("bag-ours", {"init_from": "brnn-ours"}, "brnn-ours: its W_fb is .* there, and here absent"),
        ("rnn-regions-ours", {"min_count": 20}, "min_count is 20, and 5 in brnn-ours"),
        ("rnn-regions-ours", {"init_from": "rnn-ours"}, "rnn-ours, no alignment whose snippets to learn from"),
        ("rnn-ours", {"level": "regions"}, "init_from is None, no alignment whose snippets .*; set init_from"),
        ("brnn-ours", {"word_dim": None}, "word_dim is None, and word_vectors are learnt; set word_dim"),
        ("gru", {"embedding_dim": None}, "embedding_dim is None, and glove is False; set embedding_dim"),
    ],
)
def test_what_fits_neither_the_paper_nor_the_preset_to_start_from_is_refused_before_any_work(name, overrides, said):
    owner = next(each for each in papers().values() if name in each.presets("scenes"))
    with pytest.raises(CapbenchError, match=said):
        owner.recipe(name, "scenes", overrides)


@pytest.mark.parametrize("owner", papers().values(), ids=papers())
def test_every_preset_fits_the_one_that_it_starts_from(owner: Paper):
    for name, recipe in owner.presets("scenes").items():
        assert owner.recipe(name, "scenes", {"training.learning_rate": 1e-5}).init_from == recipe.init_from


def test_an_encoder_is_fine_tuned_on_random_crops_alone():
    owner = paper("vsepp")
    assert owner.recipe("vsepp", "scenes", {"finetune": True, "view": "RC"}).finetune
    with pytest.raises(CapbenchError, match="finetune takes random crops, and view is 1C"):
        owner.recipe("vsepp-ft", "scenes", {"view": "1C"})


@pytest.mark.parametrize("owner", papers().values(), ids=papers())
def test_the_metrics_that_can_choose_are_those_of_validation_and_the_higher_the_better(owner: Paper):
    records = [each for each in load_results(ROOT / "leaderboards" / "results", owner.name) if each.dataset == "scenes"]
    lower = {key for key, metric in METRICS.items() if metric.lower_is_better}
    for record in records:
        choosers = set(owner.recipe(record.preset, record.dataset).choosers)
        assert choosers <= record.validation.keys()
        assert not choosers & lower
    assert records or not owner.in_repository


def test_the_meaning_of_a_field_is_the_comment_beside_it():
    assert meaning(VSEPP, "negatives") == "how many negatives each query has; None: the whole batch"
    assert meaning(VSEPP, "warmup") == "first epochs, trained with another loss; they give no snapshot"
    assert meaning(VSEPP, "min_count") == "a word is in the vocabulary if it occurs so often in the training captions"
    assert meaning(VSEPP, "training.epochs") == ""
    assert isinstance(VSEPP, Recipe)


def test_a_plan_sets_the_fields_of_each_preset_that_differ_in_it():
    jobs = plan(paper("vsepp"), "scenes", ["vse0", "vsepp-ours"], seed=0, assignments=["training.epochs=7", "margin=1"])
    assert [job.overrides for job in jobs] == [{"margin": 1.0, "training.epochs": 7}, {"margin": 1.0}]
    with pytest.raises(CapbenchError, match="vse0: the recipe has no field 'epochs'"):
        plan(paper("vsepp"), "scenes", ["vse0"], assignments=["epochs=7"])


def test_the_printed_command_makes_the_same_job_and_each_job_has_a_folder_of_its_own():
    settings: list[list[str]] = [[], ["margin=0.1"], ["margin=0.2000001"], ["training.clip_norm=none", "margin=0.1"]]
    jobs = [plan(paper("vsepp"), "scenes", ["vsepp-ours"], seed=1, assignments=each)[0] for each in settings]
    for job in jobs:
        _, bound, _ = app.parse_args(shlex.split(job.command)[1:], exit_on_error=False, print_error=False)
        asked = bound.arguments
        (again,) = plan(
            paper(asked["paper"]), asked["dataset"], asked["preset"], asked["encoder"], seed=asked["seed"],
            assignments=asked.get("assignments") or (),
        )  # fmt: skip
        assert again == job
    assert len({job.name for job in jobs}) == len(set(jobs)) == len(jobs)
    assert jobs[0].name == "vsepp-ours-scenes-scenes-s1"
    assert jobs[1].name.startswith("vsepp-ours-scenes-scenes-s1-margin_0.1-")
    assert str(jobs[1]) == "vsepp vsepp-ours, margin=0.1 on scenes, scenes, seed 1"


def test_the_session_of_the_plain_preset_is_not_that_of_a_changed_one(tmp_path):
    plain, changed = (
        plan(paper("vsepp"), "scenes", ["vse0"], seeds=2, assignments=each) for each in ((), ("margin=1",))
    )
    session = Session(tmp_path / "session.json", plain, fresh=True)
    session.add(plain[0], [])
    assert Session(tmp_path / "session.json", changed, fresh=True).remaining() == changed
    assert Session(tmp_path / "session.json", plain, fresh=True).remaining() == plain[1:]
