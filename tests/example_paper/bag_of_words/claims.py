"""The claims of the paper: none."""

from __future__ import annotations

from capbench.evidence.verdicts import Claim

CLAIMS: tuple[Claim, ...] = ()
