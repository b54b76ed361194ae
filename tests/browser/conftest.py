"""A real browser: Chromium, without a window, that may load from one address alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = (
    *("--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)
SCREENS = {"narrow": (390, 844), "wide": (1280, 900)}
SCHEMES = ("light", "dark")


@dataclass
class Visit:
    """A page in the browser, and what went wrong while it was open."""

    page: Page
    faults: list[str] = field(default_factory=list)  # errors of its console, and requests to elsewhere


def host(address: str) -> str:
    """Of an address; empty for a file, and for data that are their own address."""
    return urlsplit(address).netloc


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on the PATH; install it or set CHROMIUM")
    with sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # root has no sandbox
        yield playwright.chromium.launch(executable_path=program, args=[*FLAGS, *sandbox])


@pytest.fixture(params=[(screen, scheme) for screen in SCREENS for scheme in SCHEMES], ids="-".join)
def visit(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Callable[[str], Visit]]:
    """Opens an address on a screen of some width, light or dark; afterwards nothing must have gone wrong."""
    screen, scheme = request.param
    width, height = SCREENS[screen]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    seen: list[Visit] = []

    def opened(address: str) -> Visit:
        visited = Visit(context.new_page())
        own = ("", host(address))
        visited.page.set_default_timeout(10_000)
        visited.page.on("console", lambda said: visited.faults.extend([said.text] if said.type == "error" else []))
        visited.page.on("pageerror", lambda error: visited.faults.append(str(error)))
        visited.page.on("request", lambda r: visited.faults.extend([] if host(r.url) in own else [r.url]))
        visited.page.goto(address, wait_until="load")
        seen.append(visited)
        return visited

    yield opened
    context.close()
    assert [fault for visited in seen for fault in visited.faults] == []
