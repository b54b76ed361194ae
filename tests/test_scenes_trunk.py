from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from capbench.base.errors import CapbenchError
from capbench.data.scenes.dice import Dice
from capbench.data.scenes.drawing import Scene, Thing, draw_scene
from capbench.data.scenes.words import COLOURS, SETTINGS, SHAPES, SIZES
from capbench.vision import scenes_trunk
from capbench.vision.scenes_trunk import WEIGHTS, ScenesTrunk, load_scenes_trunk, pixels_of, train, truth


@cache
def some(count: int, seed: int) -> list[Scene]:
    return [draw_scene(Dice(seed, "probe", index)) for index in range(count)]


def seen(trunk: ScenesTrunk, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        grid = trunk(pixels_of(scenes).float() / 255)
        vector = trunk.vector(grid)
    return grid.double(), vector.double()


def probe(x: Tensor, y: Tensor, test: Tensor, ridge: float) -> Tensor:
    """Linear least squares on standardised inputs."""
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x, test = ((each - mean) / scale for each in (x, test))
    offset = y.double().mean(0)
    square = x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    return test @ torch.linalg.solve(square, x.T @ (y.double() - offset)) + offset


def where_red(scenes: list[Scene]) -> tuple[list[int], Tensor]:
    """The scenes with one red thing, and its x and y."""
    spots = [[(t.x, t.y) for t in scene.things if t.colour == "red"] for scene in scenes]
    chosen = [index for index, spot in enumerate(spots) if len(spot) == 1]
    return chosen, torch.tensor([spots[index][0] for index in chosen], dtype=torch.float64)


def test_the_grid_is_8_by_8_and_the_vector_holds_the_mean_of_each_quarter():
    trunk = load_scenes_trunk()
    assert not trunk.training
    grid, vector = seen(trunk, some(3, 0))
    assert grid.shape == (3, 128, 8, 8)
    quarters = [grid[:, :, y : y + 4, x : x + 4].mean((2, 3)) for y in (0, 4) for x in (0, 4)]
    expected = torch.stack(quarters, dim=2).flatten(1)
    torch.testing.assert_close(vector, expected, rtol=1e-5, atol=1e-5)


def test_the_shipped_weights_are_small_and_say_how_they_were_made():
    assert WEIGHTS.stat().st_size < 1_500_000
    with safe_open(WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert metadata["command"] == "python -m capbench.vision.scenes_trunk --out scenes_trunk.safetensors --seed 0"
    assert metadata["seed"] == "0"


def test_the_grid_says_shape_and_colour_of_each_cell_to_a_linear_probe():
    scenes = some(300, 0)
    cells = truth(scenes).cells
    for trunk, low, high in ((load_scenes_trunk(), 0.8, 1.0), (ScenesTrunk().eval(), 0.0, 0.6)):
        grid, _ = seen(trunk, scenes)
        rows = grid.permute(0, 2, 3, 1).flatten(0, 2)
        half = len(rows) // 2
        answer = cells[:, 0].flatten()
        guess = probe(rows[:half], torch.eye(len(SHAPES) + 1)[answer[:half]], rows[half:], 1e-3).argmax(1)
        thing = answer[half:] > 0
        right = (guess == answer[half:])[thing].double().mean()
        assert low <= right <= high


def test_the_vector_says_where_the_red_thing_is_to_a_linear_probe():
    learn, test = some(900, 1), some(200, 2)
    (known, x), (asked, y) = where_red(learn), where_red(test)
    _, inputs = seen(load_scenes_trunk(), [learn[i] for i in known])
    _, others = seen(load_scenes_trunk(), [test[i] for i in asked])
    error = (probe(inputs, x, others, 0.1) - y).square().sum() / (y - y.mean(0)).square().sum()
    assert error < 0.35


def test_the_vector_tells_a_scene_from_its_mirror_image():
    scene = Scene("snow", (230, 230, 230), (Thing("star", "red", "large", 16, 30, 12, (212, 45, 48)),))
    mirror = Scene("snow", (230, 230, 230), (Thing("star", "red", "large", 48, 30, 12, (212, 45, 48)),))
    _, vector = seen(load_scenes_trunk(), [scene, mirror])
    assert torch.cosine_similarity(vector[:1], vector[1:]) < 0.8


def test_the_trunk_takes_bfloat16():
    trunk = load_scenes_trunk().to(torch.bfloat16)
    grid = trunk(pixels_of(some(2, 0)).to(torch.bfloat16) / 255)
    assert trunk.vector(grid).dtype == torch.bfloat16


def test_the_truth_of_a_scene_agrees_with_a_search_over_its_things():
    scenes = some(40, 3)
    cells, kinds, setting = truth(scenes)
    assert [list(SETTINGS)[number] for number in setting] == [scene.setting for scene in scenes]
    for index, scene in enumerate(scenes):
        for row in range(8):
            for column in range(8):
                x, y = 8 * column + 4, 8 * row + 4
                at = [t for t in scene.things if abs(t.x - x) < t.radius and abs(t.y - y) < t.radius]
                key = (at[0].shape, at[0].colour, at[0].size) if at else None
                tables = (list(SHAPES), list(COLOURS), list(SIZES))
                want = [tables[i].index(key[i]) + 1 if key else 0 for i in range(3)]
                assert cells[index, :, row, column].tolist() == want
        for number, (shape, colour) in enumerate((s, c) for s in SHAPES for c in COLOURS):
            there = [t for t in scene.things if (t.shape, t.colour) == (shape, colour)]
            if there:
                x, y = (np.mean([getattr(t, name) for t in there]) / 32 - 1 for name in "xy")
                assert kinds[index, number, :3].tolist() == pytest.approx([1, x, y], abs=1e-6)
            else:
                assert not kinds[index, number].any()
        assert (cells[index, 0].unique() > 0).sum() == len({t.shape for t in scene.things})


def test_training_is_repeatable_and_leaves_the_global_generator_alone(capsys: pytest.CaptureFixture[str]):
    before = torch.get_rng_state()
    one, two, other = (train(seed, count=64, epochs=2).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in capsys.readouterr().err.splitlines()]
    assert losses[1] < losses[0]


def test_the_command_writes_a_file_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trunk = ScenesTrunk()
    monkeypatch.setattr(scenes_trunk, "train", lambda seed: trunk)
    monkeypatch.setattr(sys, "argv", ["scenes_trunk", "--out", str(tmp_path / "new.safetensors"), "--seed", "7"])
    scenes_trunk.main()
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        assert file.metadata()["seed"] == "7"
        assert str(tmp_path) not in file.metadata()["command"]
    monkeypatch.setattr(scenes_trunk, "WEIGHTS", tmp_path / "new.safetensors")
    loaded = load_scenes_trunk().state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in trunk.state_dict().items())


def test_a_truncated_weights_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(WEIGHTS.read_bytes()[:-1000])
    monkeypatch.setattr(scenes_trunk, "WEIGHTS", broken)
    with pytest.raises(CapbenchError, match=r"broken\.safetensors"):
        load_scenes_trunk()
