"""The page: three tabs of Gradio over `Answers`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import gradio as gr

if TYPE_CHECKING:
    from capbench.demo.answers import Answers

Kept = Callable[[], "Answers"]  # makes them at the first call: they import torch
EMPTY = '<p class="empty">The answer comes here.</p>'
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1, "api_visibility": "private"}
METHODS = ("Beam search", "Sampling")
FONTS = ("system-ui", "sans-serif")


def asset(name: str) -> str:
    """A style sheet or a script of the page."""
    return (files("capbench.demo") / name).read_text(encoding="utf-8")


def theme() -> gr.Theme:
    """Gradio's plain theme with fonts of the reader's system, so that none is fetched."""
    plain = gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=("ui-monospace", "monospace")
    )
    names = ("button_primary_background_fill", "button_primary_background_fill_dark")
    return plain.set(**dict.fromkeys(names, "*primary_700"))  # white on it has a contrast of 4.5 and more


def page(answers: Kept) -> gr.Blocks:
    """The page, whose lists of runs are filled when it is opened."""
    with gr.Blocks(title="capbench demo", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML('<h1>capbench demo</h1><p class="lead">Trained models at work on pictures of your own. Nothing leaves '
                "this machine, and no picture is kept.</p>")  # fmt: skip
        with gr.Tab("Caption"):
            captioners = _caption(answers)
        with gr.Tab("Search"):
            embeddings = _search(answers)
        with gr.Tab("Align"):
            aligners = _align(answers)
        refused = gr.HTML("")

        def opened() -> list[Any]:
            from capbench.demo import markup
            from capbench.demo.models import ALIGNER, CAPTIONER, EMBEDDING

            models = answers().models
            unusable = models.refresh()
            lists = [models.of(kind) for kind in (CAPTIONER, EMBEDDING, ALIGNER)]
            updates = [gr.Dropdown(choices=runs, value=runs[0][1] if runs else None) for runs in lists]
            return [*updates, markup.unusable(unusable)]

        blocks.load(opened, None, [captioners, embeddings, aligners, refused], **ONE_AT_A_TIME)
    return blocks


def _picture() -> gr.HTML:
    """A place to drop a picture on. The page alone keeps it, and sends it with each question."""
    return gr.HTML(None, html_template=asset("drop.html"), js_on_load=asset("drop.js"), elem_classes="picture")


def _runs() -> gr.Dropdown:
    return gr.Dropdown([], label="Run", info="The finished runs, newest first.", interactive=True)


def _answer() -> gr.HTML:
    return gr.HTML(EMPTY, elem_classes="outcome")


def _caption(answers: Kept) -> gr.Dropdown:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            run, picture = _runs(), _picture()
            n_best = gr.Slider(1, 10, 3, step=1, label="Captions")
            method = gr.Radio(METHODS, value=METHODS[0], label="Decoding")
            beam = gr.Textbox(label="Beam width", placeholder="that of the run's own captions", max_length=20)
            with gr.Group(visible=False) as sampling:
                temperature = gr.Slider(0.1, 2.0, 1.0, step=0.05, label="Temperature")
                seed = gr.Number(0, label="Seed", precision=0)
            ask = gr.Button("Caption", variant="primary")
        with gr.Column(scale=3, min_width=300):
            answer = _answer()
    method.change(
        lambda chosen: [gr.update(visible=chosen == kind) for kind in METHODS], method, [beam, sampling],
        api_visibility="private", show_progress="hidden",
    )  # fmt: skip
    inputs = [run, picture, method, beam, temperature, seed, n_best]
    ask.click(lambda *given: answers().caption(*given), inputs, answer, **ONE_AT_A_TIME)
    return run


def _search(answers: Kept) -> gr.Dropdown:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            run = _runs()
            sentence = gr.Textbox(label="Sentence", placeholder="a dog runs through water", max_length=1000)
            find = gr.Button("Find pictures", variant="primary")
            picture = _picture()
            describe = gr.Button("Find captions", variant="primary")
            top = gr.Slider(1, 50, 12, step=1, label="Results")
        with gr.Column(scale=3, min_width=300):
            answer = _answer()

    def found(run: str | None, sentence: str, top: float, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        def report(done: int, total: int) -> None:
            progress((done, total), desc="pictures", unit="pictures")

        return answers().search(run, sentence, top, report)

    for event in (find.click, sentence.submit):
        event(found, [run, sentence, top], answer, **ONE_AT_A_TIME)
    describe.click(lambda *given: answers().describe(*given), [run, picture, top], answer, **ONE_AT_A_TIME)
    return run


def _align(answers: Kept) -> gr.Dropdown:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            run, picture = _runs(), _picture()
            caption = gr.Textbox(label="Caption", placeholder="a man on a red bicycle", max_length=1000)
            preferred = "How strongly neighbouring words prefer one region; at 0 each word chooses alone."
            beta = gr.Textbox(label="Affinity", info=preferred, placeholder="the run's own", max_length=20)
            ask = gr.Button("Align", variant="primary")
        with gr.Column(scale=3, min_width=300):
            answer = _answer()
    for event in (ask.click, caption.submit):
        event(lambda *given: answers().align(*given), [run, picture, caption, beta], answer, **ONE_AT_A_TIME)
    return run
