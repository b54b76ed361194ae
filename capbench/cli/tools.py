"""`capbench search`, `caption` and `align`: a trained model at work on pictures of one's own; and `capbench probe`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from capbench.base.errors import CapbenchError
from capbench.cli.options import Affinity, Count, Dataset, Encoder, Json, OneOrMore, Seed, Temperature, View
from capbench.cli.output import say


def search(
    query: str | None = None,
    /,
    *,
    images: Path | None = None,
    image: Path | None = None,
    captions: Path | None = None,
    top: Count = 5,
    run: Path | None = None,
    runs: Path = Path("runs"),
    sheet: Path | None = None,
) -> None:
    """Find the images that a sentence describes, or the captions that describe an image.

    Parameters
    ----------
    query
        The sentence; needs `--images`.
    images
        The folder of images to search.
    image
        The image; needs `--captions`.
    captions
        A text file of captions to search, one a line.
    top
        How many results to print.
    run
        The folder of a finished run; the newest joint embedding under RUNS if not given.
    runs
        The folder of all runs.
    sheet
        Draw the images that match into this file (PNG, JPEG or WebP, by its name).
    """
    if (
        (query is None) == (image is None)
        or (query is not None) != (images is not None)
        or (image is not None) != (captions is not None)
    ):
        raise CapbenchError("give either a sentence with --images FOLDER, or --image FILE with --captions FILE")
    from capbench.base.files import printable
    from capbench.tools.drawing import check_drawable, draw_sheet
    from capbench.tools.pictures import look_at
    from capbench.tools.search import candidates, captions_of_image, images_of_sentence, lines_of, retriever

    check_drawable(sheet)
    trained = retriever(run, runs)
    say(f"with {trained}")
    seen = look_at(trained, images or image or Path())
    if query is not None:
        ranked = images_of_sentence(trained, query, seen, top)
    else:
        file = captions or Path()
        ranked = captions_of_image(trained, seen, candidates(trained, lines_of(file), str(file)), top)
    for picture, similarity in ranked.pictures:
        say(f"{similarity:7.3f}  {printable(picture)}")
    for line, similarity in ranked.captions:
        say(f"{similarity:7.3f}  {line}")
    if ranked.unknown:
        say(f"not in the vocabulary: {', '.join(ranked.unknown)}")
    _passed_over(seen.passed_over)
    if sheet is not None and ranked.pictures:
        labels = [f"{printable(Path(path.name))} ({similarity:.3f})" for path, similarity in ranked.pictures]
        draw_sheet([path for path, _ in ranked.pictures], labels, sheet)


def caption(
    pictures: Path,
    /,
    *,
    beam: Count | None = None,
    n_best: Count = 1,
    temperature: Temperature | None = None,
    seed: Seed = 0,
    attention: Path | None = None,
    sheet: Path | None = None,
    out: Path | None = None,
    run: Path | None = None,
    runs: Path = Path("runs"),
) -> None:
    """Write captions for an image or for each image of a folder.

    Parameters
    ----------
    pictures
        An image file or a folder of them.
    beam
        The beam size; the one that the run's own captions were scored with if not given.
    n_best
        How many captions to write for each image.
    temperature
        Draw the captions instead of searching: words have their probabilities to the power 1 / TEMPERATURE.
    seed
        Of the draw.
    attention
        Draw where the model looked at each word into this file (PNG, JPEG or WebP); needs a single image.
    sheet
        Draw the images with their captions into this file (PNG, JPEG or WebP).
    out
        Write the captions and their log-probabilities to this JSON file, in COCO's results format.
    run
        The folder of a finished run; the newest captioner under RUNS if not given.
    runs
        The folder of all runs.
    """
    from capbench.base.files import printable
    from capbench.tools.caption import beam_of, captioner, captions_of, draw_attention, samples_of, save_captions
    from capbench.tools.drawing import ON_A_SHEET, check_drawable, draw_sheet
    from capbench.tools.pictures import look_at

    if attention is not None and pictures.is_dir():
        raise CapbenchError(f"--attention draws one image, and {printable(pictures)} is a folder")
    if temperature is not None and beam is not None:
        raise CapbenchError("--beam searches and --temperature draws: give one of them")
    for drawing in (attention, sheet):
        check_drawable(drawing)
    trained = captioner(run, runs)
    say(f"with {trained}")
    seen = look_at(trained, pictures)
    if sheet is not None and len(seen.paths) > ON_A_SHEET:
        raise CapbenchError(f"--sheet draws {ON_A_SHEET} images at most, and {pictures} has {len(seen.paths):,}")
    if temperature is None:
        captioned = captions_of(trained, seen, beam or max(beam_of(trained), n_best), n_best)
    else:
        captioned = samples_of(trained, seen, temperature, n_best, seed)
    for entry in captioned:
        say(printable(entry.picture))
        for words, log_prob in zip(entry.captions, entry.log_probs, strict=True):
            say(f"{log_prob:8.2f}  {words}")
    _passed_over(seen.passed_over)
    if out is not None:
        save_captions(captioned, out)
    if attention is not None:
        draw_attention(captioned[0], attention)
    if sheet is not None:
        draw_sheet(seen.paths, [entry.captions[0] for entry in captioned], sheet)


def align(
    photo: Path,
    caption: str,
    /,
    *,
    beta: Affinity | None = None,
    run: Path | None = None,
    runs: Path = Path("runs"),
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Find the region of an image that each word of a caption describes.

    Parameters
    ----------
    photo
        An image file.
    caption
        The caption, one sentence.
    beta
        How strongly neighbouring words prefer one region; at 0 each word chooses alone. The recipe's own if not given.
    run
        The folder of a finished run; the newest alignment model under RUNS if not given.
    runs
        The folder of all runs.
    out
        Draw the regions with their words into this file (PNG, JPEG or WebP).
    as_json
        Print JSON.
    """
    from capbench.tools import align as alignment
    from capbench.tools.drawing import check_drawable

    check_drawable(out)
    trained = alignment.aligner(run, runs)
    aligned = alignment.align(trained, photo, caption, beta)
    if out is not None:
        alignment.draw_alignment(aligned, out)
    if as_json:
        print(json.dumps({"run": str(trained), **alignment.as_json(aligned)}, indent=1))
        return
    say(f"with {trained}")
    for line in alignment.as_text(aligned):
        say(line)


def probe(
    encoders: list[Encoder],
    /,
    *,
    dataset: Dataset = "flickr8k",
    view: View = "whole",
    images: Annotated[list[Count] | None, OneOrMore] = None,
    out: Path = Path("leaderboards/probes"),
) -> None:
    """Measure what an encoder's features tell of the words of captions, and record it.

    A ridge regression tells from the features of an image whether its captions have each of the 200 most frequent
    content words. Printed is the mean area under the ROC curve on the test images, with its standard error.

    Parameters
    ----------
    encoders
        One or several networks: torchvision's names, or timm/<name>.
    dataset
        The data set.
    view
        What the network sees; see `capbench features`.
    images
        How many training images the regression is fitted on; 1,000, 2,000 and all if not given.
    out
        The folder of the records, from which `capbench leaderboard` makes encoders.md.
    """
    from capbench.base.files import check_writable
    from capbench.data.datasets import load_dataset
    from capbench.evidence.probes import save_probe
    from capbench.runs.materials import encoder_on_device
    from capbench.tools.probe import probe_encoder

    check_writable(out)
    pictures = load_dataset(dataset)
    for name in encoders:
        record = probe_encoder(pictures, encoder_on_device(name), view, images or ())
        for entry in record.entries:
            measured = f"{entry.area:.4f} (standard error {entry.standard_error:.4f})"
            say(f"{name}, {entry.images:,} training images: {measured}")
        say(save_probe(record, out))


def _passed_over(paths: Sequence[Path]) -> None:
    from capbench.base.files import printable

    for path in paths:
        say(f"passed over: {printable(path)}")
