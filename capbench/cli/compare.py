"""`capbench compare`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from capbench.cli.options import Dataset, Json, OneOrMore, OneOrTwo
from capbench.cli.output import say

if TYPE_CHECKING:
    from capbench.cli.formats import Row
    from capbench.evidence.comparison import Comparison


def compare(
    a: str,
    b: str,
    /,
    *,
    metrics: Annotated[list[str] | None, OneOrMore] = None,
    dataset: Dataset | None = None,
    encoder: Annotated[list[str] | None, OneOrTwo] = None,
    split: str | None = None,
    protocol: str | None = None,
    fail_if_worse: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    as_json: Json = False,
    leaderboards: Path = Path("leaderboards"),
    runs: Path = Path("runs"),
) -> None:
    """Compare B with A, the baseline: by how much, how surely, and in which metrics B is better or worse.

    The 95 % interval is that of the paired bootstrap: images are drawn, each with all of its queries and the same for
    both, then the seeds of each. p is two-sided: the least level whose percentile interval leaves out 0. Holm's rule
    adjusts it for the number of metrics that are tested; B is better or worse where it is below 0.05 then. A metric
    that cannot be drawn anew, such as a median rank or a perplexity, has a difference alone.

    Refused are sides of other data, split or protocol, and those that were scored on other queries.

    Parameters
    ----------
    a
        The baseline: a preset, with its paper before a slash where several papers have one of that name
        (`vsepp/vsepp-ours`), or record files of one setting: several seeds are a pattern, or names between commas. A
        preset stands for its committed records, and without them for your own. Or a file of outputs that
        `capbench score` reads, of one kind in one file; it needs `--dataset`.
    b
        What is compared with it, named likewise.
    metrics
        The metrics by their keys (`rsum`, `bleu4`); those of the tables that both have if not given.
    dataset
        Compare on this data set.
    encoder
        Compare the presets with this encoder; or two encoders, that of A and that of B.
    split
        Compare on this split.
    protocol
        Compare under this protocol.
    fail_if_worse
        Exit with 1 if B is worse in one of these metrics, or in any that was tested if none is named. Refused where
        nothing could be tested.
    as_json
        Print JSON.
    leaderboards
        The folder with the committed records, in its `results`.
    runs
        The folder with your own, in its `records`.
    """
    from capbench.base.errors import CapbenchError, unknown
    from capbench.cli.formats import written
    from capbench.cli.sides import Among, sides
    from capbench.evidence.comparison import compare as compare_sides

    encoders = (encoder[0], encoder[-1]) if encoder else (None, None)
    among = Among((leaderboards / "results", runs / "records"), dataset, split, protocol, encoders)
    compared = compare_sides(*sides(a, b, among), metrics)
    tested = [each.metric for each in compared.differences if each.p is not None]
    if fail_if_worse is not None and not tested:
        reasons = "; ".join(f"{each.metric}: {each.test}" for each in compared.differences)
        raise CapbenchError(f"nothing could be tested: {reasons}")
    for key in fail_if_worse or ():
        if key not in tested:
            raise unknown("metric that was tested", key, tested)
    if as_json:
        print(json.dumps(asdict(compared), indent=1))
    else:
        for line in _heading(compared):
            say(line)
        print(written([asdict(each) for each in compared.differences], "table", _shown))
        for line in _remarks(compared):
            say(line)
    if fail_if_worse is not None and set(compared.worse) & set(fail_if_worse or tested):
        sys.exit(1)


def _heading(compared: Comparison) -> Iterator[str]:
    for letter, name, seeds in zip("AB", (compared.a, compared.b), compared.seeds, strict=True):
        yield f"{letter}: {name}, {seeds} seed{'s' if seeds > 1 else ''}"
    data = compared.data
    yield f"on {data['dataset']}, {data['split']} split, protocol {data['protocol']}"


def _shown(row: Row) -> Row:
    from capbench.metrics.registry import metric

    digits = metric(row["metric"]).digits
    signed = {name: None if row[name] is None else f"{row[name]:+.{digits}f}" for name in ("difference", "low", "high")}
    return {
        "metric": row["metric"],
        "A": f"{row['a']:.{digits}f}",
        "B": f"{row['b']:.{digits}f}",
        "B - A": signed["difference"],
        "95 % interval": f"{signed['low']} to {signed['high']}" if signed["low"] else None,
        "p": _p(row["p"]),
        "p (Holm)": _p(row["p_holm"]),
        "B is": row["verdict"],
        "queries": row["queries"],
        "images": row["images"],
    }


def _p(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _remarks(compared: Comparison) -> Iterator[str]:
    from capbench.evidence.comparison import SAMPLES

    tested = [each for each in compared.differences if each.p is not None]
    if tested:
        over = f"; p adjusted by Holm's rule for {len(tested)} metrics" if len(tested) > 1 else ""
        yield f"paired bootstrap over images and seeds, {SAMPLES:,} samples{over}"
    for each in compared.differences:
        if each.p is None:
            yield f"{each.metric} is not tested: {each.test}"
    if min(compared.seeds) < 2:
        yield "a side of one seed: the interval says nothing of other seeds"
