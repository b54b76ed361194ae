"""`capbench import`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from capbench.cli.options import Dataset, Encoder, View, recorded_name
from capbench.cli.output import say


def import_released(
    paper: str,
    checkpoint: Path,
    /,
    *,
    vocabulary: Path,
    dataset: Dataset | None = None,
    encoder: Encoder | None = None,
    view: View | None = None,
    name: Annotated[str | None, Parameter(name="--name")] = None,
    record: bool = False,
    runs: Path = Path("runs"),
    leaderboards: Path = Path("leaderboards"),
) -> None:
    """Make a finished run from a checkpoint that the authors' code saved, and score it with `--record`.

    Read are the checkpoints of fartashf/vsepp (for vsepp) and the Show and Tell models of
    ruotianluo/ImageCaptioning.pytorch (for show-and-tell). They are opened without running code in them. The run's
    preset is named `released-...`: it is shown on the page, and no number of the paper is judged by it.

    Parameters
    ----------
    paper
        The paper, for example vsepp.
    checkpoint
        The file: model_best.pth.tar of vsepp, model.pth of ImageCaptioning.pytorch.
    vocabulary
        Its words as JSON: vsepp's vocabulary, ImageCaptioning.pytorch's infos. A pickle is refused, with the line that
        converts it.
    dataset
        The data set that it is scored on; the one that it was trained on if not given.
    encoder
        The network that makes its features; the one that it was trained with if not given.
    view
        What the network sees of an image; as the file says if not given.
    name
        Name the preset `released-NAME`; the kind of model if not given.
    record
        Score it on the test split, record the result and write the paper's page.
    runs
        The folder of trained models and, in its `records`, of what they scored.
    leaderboards
        The folder of the committed records and the pages.
    """
    from capbench.cli.reporting import conclude
    from capbench.runs.harness import Places
    from capbench.runs.importing import Request, import_run
    from capbench.runs.materials import Materials
    from capbench.runs.paper import paper as find_paper

    owner, places = find_paper(paper), Places(runs)
    chosen = {"--dataset": dataset, "--encoder": encoder, "--view": view, "--name": name}
    words = ["capbench", "import", paper, checkpoint.name, "--vocabulary", vocabulary.name]
    words += [word for option, value in chosen.items() if value for word in (option, value)]
    command = shlex.join([*words, *["--record"] * record])
    recorded = recorded_name(dataset) if dataset else None
    request = Request(checkpoint, vocabulary, name, recorded, encoder, view, record, command)
    materials = Materials()
    if dataset and record:
        materials.dataset(dataset)  # a folder is known by its name from then on
    imported = import_run(owner, request, places, materials)
    say(imported.folder)
    if imported.records:
        conclude(owner, places, leaderboards, [path.name for path in imported.records])
