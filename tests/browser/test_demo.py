"""The demo in a real browser: it captions, plays, searches and aligns, asks no other host, and can be read by all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Visit
from tests.tiny_runs import album, tiny_runs

ROOT = Path(__file__).parents[2]
PATIENCE = 60_000  # milliseconds: the first answer imports torch
START = 10.0  # seconds of a processor
NASTY = "<img src=x onerror=alert(1)>.png"

# No process of the demo may reach another machine: a connection to elsewhere ends it.
PROGRAM = """
import os, socket
connect = socket.socket.connect
def guarded(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        print("CONNECTED", address, flush=True)
        os._exit(3)
    return connect(self, address)
socket.socket.connect = guarded
import capbench.cli
capbench.cli.main()
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A running demo of tiny runs and a folder of pictures: its address, and its processor time until it said so."""
    folder = tmp_path_factory.mktemp("demo")
    words = ["demo", "--runs", str(tiny_runs(folder)), "--images", str(album(folder / "album")), "--port", "0"]
    variables = {"PYTHONPATH": str(ROOT), "CAPBENCH_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "temporary")}
    (folder / "temporary").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        env=os.environ | variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().partition(" ")[0]
    assert address.startswith("http://127.0.0.1:"), "the demo did not start"
    ticks = (
        Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13] if os.name == "posix" else []
    )
    spent = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    yield SimpleNamespace(address=address, folder=folder, spent=spent)
    assert process.poll() is None, "the demo ended, or asked another host"
    process.terminate()
    process.wait(20)
    assert list((folder / "temporary").iterdir()) == []


def opened(visit: Callable[[str], Visit], demo: SimpleNamespace) -> Page:
    """The page once its lists of runs are there."""
    page = visit(demo.address).page
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    expect(page.get_by_role("combobox", name="Run").first).to_have_value(re.compile("on scenes"))
    return page


def panel(page: Page, name: str) -> Locator:
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").locator("visible=true")


def readable(page: Page) -> None:
    """It fits the screen, and axe finds nothing serious."""
    page.wait_for_timeout(400)  # until transitions are over
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    serious = [
        (rule["id"], rule["help"], [node["html"] for node in rule["nodes"]][:3])
        for rule in Axe().run(page).response["violations"]
        if rule["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_it_starts_within_ten_seconds(demo):
    assert demo.spent < START


def test_an_uploaded_picture_is_captioned_and_its_attention_plays(visit, demo):
    page = opened(visit, demo)
    readable(page)
    here = panel(page, "Caption")
    here.get_by_role("combobox", name="Run").click()
    page.get_by_role("option", name="soft-ours").click()
    picture = (demo.folder / "album" / "0.png").read_bytes()
    here.locator("input[type=file]").set_input_files({"name": NASTY, "mimeType": "image/png", "buffer": picture})
    expect(here.get_by_text(NASTY)).to_be_visible()
    here.get_by_role("button", name="Caption").click()
    answer = here.locator(".answer")
    expect(answer.locator(".captions li")).to_have_count(3)
    expect(answer).to_contain_text("This model was trained on scenes")
    light = answer.locator(".light")
    expect(light).to_be_hidden()
    answer.locator(".captions button").nth(2).click()
    words = answer.locator(".spoken button").locator("visible=true")
    answer.get_by_role("button", name="Play").click()
    for number in range(2):
        expect(words.nth(number)).to_have_attribute("aria-pressed", "true")
        assert light.get_attribute("src") == words.nth(number).get_attribute("data-light")
        expect(light).to_be_visible()
    answer.get_by_role("button", name="Stop").click()
    answer.locator(".captions button").nth(1).click()
    expect(light).to_be_hidden()
    end = words.last
    end.focus()
    page.keyboard.press("Enter")
    expect(end).to_have_attribute("aria-pressed", "true")
    readable(page)
    here.get_by_role("radio", name="Sampling").check()
    expect(here.get_by_label("Beam width")).to_be_hidden()
    here.get_by_role("button", name="Caption").click()
    expect(answer).to_contain_text("Drawn at temperature 1, seed 0")


def test_a_sentence_finds_pictures_and_a_picture_captions(visit, demo):
    page = opened(visit, demo)
    here = panel(page, "Search")
    here.get_by_label("Sentence").fill("a red circle <i> zebra")
    here.get_by_label("Sentence").press("Enter")
    answer = here.locator(".answer")
    expect(answer.locator(".hits li")).to_have_count(6)
    expect(answer).to_contain_text("The model does not know: i, zebra.")
    readable(page)
    here.locator("input[type=file]").set_input_files(demo.folder / "album" / "1.png")
    here.get_by_role("button", name="Find captions").click()
    expect(answer.locator(".captions li")).to_have_count(12)


def test_words_and_boxes_light_up_together(visit, demo):
    page = opened(visit, demo)
    here = panel(page, "Align")
    here.get_by_role("button", name="Align").click()
    expect(here.get_by_role("alert")).to_contain_text("there is no picture yet")
    here.locator("input[type=file]").set_input_files(demo.folder / "album" / "0.png")
    here.get_by_label("Caption").fill("a red circle left of a blue square")
    here.get_by_label("Affinity").fill("0")
    here.get_by_role("button", name="Align").click()
    answer = here.locator(".answer")
    words = answer.locator(".spoken button")
    expect(words).to_have_count(8)
    readable(page)
    of_words = words.evaluate_all("all => all.map(one => [one.dataset.region, getComputedStyle(one).backgroundColor])")
    boxes = answer.locator("g[data-region] .frame")
    of_boxes = boxes.evaluate_all(
        "all => all.map(one => [one.parentNode.dataset.region, getComputedStyle(one).stroke])"
    )
    assert dict(of_boxes) == {number: colour for number, colour in of_words if number != "0"}
    assert of_boxes
    region = words.first.get_attribute("data-region")
    words.first.focus()
    joined = answer.locator(".joined")
    assert set(joined.evaluate_all("parts => parts.map(part => part.dataset.region)")) == {region}
