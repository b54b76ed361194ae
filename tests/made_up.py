"""Made-up records for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from capbench.data.datasets import known_fingerprint
from capbench.evidence.records import SYSTEMS, Result, save_result
from capbench.evidence.reliability import FAULTS, Row, fault_rows, save_reliability

HOSTILE = "a|b <script>document.title = 'owned'</script> <img src=x onerror=alert(1)> \u202e`c` **d** {{ 7 * 7 }}"


def made_up_record(**changes: Any) -> Result:
    """A record of VSE++ on Flickr8K that says nothing but what its fields need, with some fields changed."""
    fields: dict[str, Any] = {
        "paper": "vsepp", "preset": "vsepp", "dataset": "flickr8k", "split": "test", "protocol": "whole",
        "encoder": "mobilenet_v2", "view": "1C", "seed": 0, "metrics": {}, "validation": {}, "best_epoch": 0,
        "curve": [], "recipe": {}, "parameters": 1, "dataset_fingerprint": "d", "features_fingerprint": "f",
        "vocabulary_size": 9, "commit": "c", "dirty": False, "versions": {}, "device": "CPU", "threads": 1,
        "started": "2024-05-01T12:00:00Z", "wall_seconds": 1.0, "command": "",
    }  # fmt: skip
    return Result(**(fields | changes))


def made_up_leaderboards(folder: Path) -> Path:
    """A folder of records: three seeds of VSE++, a captioner, another system, and one whose every name is hostile."""
    results = folder / "results"
    metrics = {"image_to_caption_r1": 20.0, "caption_to_image_r1": 11.0, "rsum": 200.0}
    epoch = {"learning_rate": 0.1, "seconds": 1.0, "validation": {"rsum": 100.0}}
    curve = [{**epoch, "epoch": number, "loss": 3.0 - number} for number in range(3)]
    published = {"dataset_fingerprint": known_fingerprint("flickr8k")}
    for seed in range(3):
        fields = {"metrics": {name: value + seed for name, value in metrics.items()}, "curve": curve, **published}
        command = f"capbench run vsepp --preset vsepp --seed {seed}"
        record = made_up_record(seed=seed, command=command, recipe={"margin": 0.2}, **fields)
        save_result(record, {"image_to_caption": np.arange(4, dtype=np.int32)}, results)
    save_result(made_up_record(preset="vse0", metrics={"rsum": 150.0}, **published), {}, results)
    captioner = {"paper": "show_attend_tell", "preset": "soft-ours", "view": "grid", **published}
    save_result(made_up_record(**captioner, metrics={"bleu4": 21.0, "bleu1": 60.0}), {}, results)
    save_result(made_up_record(paper=SYSTEMS, preset=HOSTILE, encoder="captions", metrics={"bleu4": 9.0}), {}, results)
    names = dict.fromkeys(("preset", "encoder", "view", "protocol", "device", "commit", "command"), HOSTILE)
    hostile = made_up_record(**names, notes=[HOSTILE], recipe={HOSTILE: HOSTILE}, metrics={"rsum": 1.0, HOSTILE: 2.0})
    save_result(hostile, {}, results)
    faults: dict[str, list[Row]] = {FAULTS: fault_rows({HOSTILE: ["passed"]}), HOSTILE: [{HOSTILE: HOSTILE}]}
    save_reliability(faults, folder / "reliability" / "faults.json", HOSTILE, datetime(2024, 5, 1, tzinfo=UTC))
    return folder
