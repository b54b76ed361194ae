"""What one run is, its folder and its command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One run: a preset of a paper on a data set with an encoder and a seed."""

    paper: str
    preset: str
    dataset: str
    encoder: str
    seed: int

    def __str__(self) -> str:
        return f"{self.paper} {self.preset} on {self.dataset}, {self.encoder}, seed {self.seed}"

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.preset}-{self.dataset}-{self.encoder}-s{self.seed}"

    @property
    def command(self) -> str:
        """What to type to make this run again."""
        words = ["capbench", "run", self.paper.replace("_", "-"), "--preset", self.preset, "--dataset", self.dataset]
        return shlex.join([*words, "--encoder", self.encoder, "--seed", str(self.seed)])
