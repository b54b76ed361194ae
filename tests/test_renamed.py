"""Records of schema 1 are read under today's names, and say the same numbers as before."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from capbench.evidence import renamed
from capbench.evidence.records import SCHEMA_VERSION, Result
from capbench.evidence.results import Results
from capbench.leaderboard.pooled import gather, marks
from capbench.runs.paper import paper, papers
from capbench.training.experiment import Recipe

RESULTS = Path(__file__).parents[1] / "leaderboards" / "results"
MEANS = Path(__file__).with_name("means_of_schema_1.csv")  # of the rows, under the names of schema 1
OF_THE_PAPERS = {
    "karpathy": {"brnn", "rnn", "rnn-released"},
    "show_and_tell": {"nic"},
    "show_attend_tell": {"soft", "hard"},
    "translational": {
        *("lstm", "lstm-released", "lstm-glove", "lstm-augmented"),
        *("gru", "gru-released", "gru-glove", "gru-augmented"),
    },
    "vsepp": {
        *("vse0", "vse0-10C", "vse0-RC", "vse0-ft", "vsepp", "vsepp-10C", "vsepp-RC", "vsepp-ft"),
        *("order0", "orderpp"),
    },
}
COMMITTED = Results.load(RESULTS)
OF_SCHEMA_1 = [r for r in COMMITTED.records if json.loads((RESULTS / r.file).read_text())["schema_version"] == 1]


def presets() -> list[tuple[str, str, Recipe]]:
    return [(owner.name, name, recipe) for owner in papers().values() for name, recipe in owner.presets("coco").items()]


def test_a_preset_ends_in_ours_unless_it_is_the_paper_s():
    for owner in papers().values():
        names = set(owner.presets("coco"))
        assert {name for name in names if not name.endswith("-ours")} == OF_THE_PAPERS[owner.name]
        assert not any("-ours-" in name for name in names)


def test_averaged_weights_and_ensembles_are_of_no_paper_s_recipe():
    """Vinyals et al. join models too, but print neither how many nor of which seeds."""
    for _, name, recipe in presets():
        if recipe.training.ema_decay or recipe.ensemble_size > 1:
            assert name.endswith("-ours")


def test_headlines_and_initial_weights_are_presets_there_are():
    for owner in papers().values():
        for dataset in ("coco", "flickr8k", "scenes"):
            known = owner.presets(dataset)
            assert set(owner.headline) <= set(known)
            assert {recipe.init_from for recipe in known.values()} - {None} <= set(known)


@pytest.mark.parametrize("record", OF_SCHEMA_1, ids=lambda record: record.file)
def test_a_record_of_schema_1_has_the_names_and_the_recipe_of_today(record: Result):
    owner = paper(record.paper)
    recipe = owner.recipe(record.preset, record.dataset)
    assert record.schema_version == SCHEMA_VERSION
    assert record.recipe.keys() <= asdict(recipe).keys()
    assert (record.view, record.region_provider) == (recipe.view, recipe.region_provider)
    assert set(marks(record, owner)) <= {"dirty tree"}  # and no other recipe, nor an older schema


def test_every_mean_is_what_it_was_under_its_old_name():
    means = {}
    for runs in (runs for owner in papers().values() for runs in gather(owner, COMMITTED)):
        record = runs.first
        setting = (record.paper, record.preset, record.dataset, record.protocol, record.encoder)
        for metric in record.metrics:
            values = runs.results.values(metric).values()
            means[*setting, metric] = f"{sum(values) / len(values):.6f}"
    with MEANS.open(newline="") as file:
        before = list(csv.DictReader(file))
    assert len(before) == 50
    for row in before:
        name = renamed.preset(row["paper"], row["preset"])
        key = (row["paper"], name, row["dataset"], row["protocol"], row["encoder"], row["metric"])
        assert means[key] == row["mean"]
