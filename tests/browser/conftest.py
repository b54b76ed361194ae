"""A real browser: Chromium, without a window, that may load from the address it was given alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from tests.made_up import made_up_leaderboards
from tests.tiny_runs import few_scenes, tiny_runs

ROOT = Path(__file__).parents[2]
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
    address: str
    faults: list[str] = field(default_factory=list)  # errors of its console, and requests to elsewhere

    def console(self, said: ConsoleMessage) -> None:
        if said.type == "error":
            self.faults.append(said.text)

    def request(self, sent: Request) -> None:
        if host(sent.url) not in ("", host(self.address)):
            self.faults.append(sent.url)


def host(address: str) -> str:
    """Of an address; empty for a file, and for data that are their own address."""
    return urlsplit(address).netloc


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The Chromium in CHROMIUM, else playwright's own, else the one on the PATH."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = shutil.which("chromium") or shutil.which("google-chrome")
        program = os.environ.get("CHROMIUM") or (own if Path(own).exists() else found)
        if program is None:
            pytest.skip("no Chromium: `playwright install chromium`, or put one on the PATH or in CHROMIUM")
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # root has no sandbox
        yield playwright.chromium.launch(executable_path=program, args=[*FLAGS, *sandbox])


@pytest.fixture(params=[(screen, scheme) for screen in SCREENS for scheme in SCHEMES], ids="-".join)
def visit(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens a file or an address on a screen of some width, light or dark; afterwards nothing must have gone wrong."""
    screen, scheme = request.param
    width, height = SCREENS[screen]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    seen: list[Visit] = []

    def opened(where: Path | str, mark: str = "") -> Visit:
        address = where.as_uri() if isinstance(where, Path) else where
        visited = Visit(context.new_page(), address)
        visited.page.set_default_timeout(20_000)
        visited.page.on("console", visited.console)
        visited.page.on("pageerror", lambda error: visited.faults.append(str(error)))
        visited.page.on("request", visited.request)
        visited.page.goto(address + mark, wait_until="load")
        seen.append(visited)
        return visited

    yield opened
    context.close()
    assert [fault for visited in seen for fault in visited.faults] == []


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of a few records, some of them hostile."""
    from capbench.site.build import build

    folder = tmp_path_factory.mktemp("site")
    return build(made_up_leaderboards(folder / "leaderboards"), folder / "site").parent


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with galleries of tiny runs, two of them of one kind."""
    from capbench.site.build import build
    from capbench.site.gallery.finding import galleries

    folder = tmp_path_factory.mktemp("shown")
    runs = tiny_runs(folder, with_regions=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAPBENCH_CACHE", str(folder / "cache"))
        patch.setattr("capbench.site.gallery.unseen.load_dataset", lambda name: few_scenes())
        found = galleries(runs, folder, 4, pytest.fail)
        return build(made_up_leaderboards(folder / "leaderboards"), folder / "site", lambda: found).parent


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the records of this repository."""
    from capbench.site.build import build

    return build(ROOT / "leaderboards", tmp_path_factory.mktemp("committed") / "site").parent
