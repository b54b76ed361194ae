"""`capbench search`, `caption` and `align`: a trained model at work on pictures of one's own."""

from __future__ import annotations

import json
from pathlib import Path

from capbench.base.errors import CapbenchError
from capbench.cli.options import Affinity, Count, Json
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
        Draw the images that match into this PNG file.
    """
    if (
        (query is None) == (image is None)
        or (query is not None) != (images is not None)
        or (image is not None) != (captions is not None)
    ):
        raise CapbenchError("give either a sentence with --images FOLDER, or --image FILE with --captions FILE")
    from capbench.tools.search import captions_of_image, contact_sheet, images_of_sentence, retriever

    trained = retriever(run, runs)
    say(f"with {trained.job}")
    results: list[tuple[object, float]] = []
    if query is not None and images is not None:
        matches = images_of_sentence(trained, query, images, top)
        results += matches
        if sheet is not None:
            contact_sheet([path for path, _ in matches], sheet)
    elif image is not None and captions is not None:
        results += captions_of_image(trained, image, captions, top)
    for item, similarity in results:
        say(f"{similarity:7.3f}  {item}")


def caption(
    pictures: Path,
    /,
    *,
    beam: Count | None = None,
    n_best: Count = 1,
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
        The beam size; the recipe's own if not given.
    n_best
        How many captions to write for each image.
    attention
        Draw where the model looked at each word into this PNG file; needs a single image.
    sheet
        Draw the images with their captions into this PNG file.
    out
        Write the captions and their log-probabilities to this JSON file.
    run
        The folder of a finished run; the newest captioner under RUNS if not given.
    runs
        The folder of all runs.
    """
    from capbench.base.files import atomic_write
    from capbench.runs.loaded import pictures_in
    from capbench.tools.caption import captioner, captions_of, draw_attention, draw_sheet

    paths = pictures_in(pictures) if pictures.is_dir() else [pictures]
    if attention is not None and len(paths) != 1:
        raise CapbenchError(f"--attention draws one picture, and {pictures} has {len(paths)}")
    trained = captioner(run, runs)
    say(f"with {trained.job}")
    captioned = captions_of(trained, paths, beam or max(trained.recipe.beam_size, n_best), n_best)
    if attention is not None and captioned[0].attention is None:
        raise CapbenchError(f"{trained.job} has no attention to draw; choose a run of show-attend-tell")
    for picture in captioned:
        say(picture.picture)
        for words, log_prob in zip(picture.captions, picture.log_probs, strict=True):
            say(f"{log_prob:8.2f}  {words}")
    if out is not None:
        rows = [{"picture": str(p.picture), "captions": p.captions, "log_probs": p.log_probs} for p in captioned]
        atomic_write(out, (json.dumps(rows, indent=1) + "\n").encode())
    if attention is not None:
        draw_attention(captioned[0], attention)
    if sheet is not None:
        draw_sheet(captioned, sheet)


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
        Draw the regions with their words into this PNG file.
    as_json
        Print JSON.
    """
    from capbench.tools import align as alignment

    trained = alignment.aligner(run, runs)
    aligned = alignment.align(trained, photo, caption, beta)
    if out is not None:
        alignment.draw_alignment(aligned, out)
    if as_json:
        print(json.dumps({"run": str(trained.job), **alignment.as_json(aligned)}, indent=1))
        return
    say(f"with {trained.job}")
    for line in alignment.as_text(aligned):
        say(line)
