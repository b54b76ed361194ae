"""Made-up records for tests."""

from __future__ import annotations

from typing import Any

from capbench.evidence.records import Result


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
