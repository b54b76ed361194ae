"""The site in a real browser: it opens from its files alone, sorts, filters, and can be read by everybody."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.made_up import HOSTILE

FIRST_PAGE = 1_000_000  # bytes, with all that it loads
UNFOLD = "document.querySelectorAll('details').forEach((fold) => (fold.open = true))"
PAGES = (
    "index.html", "numbers.html", "claims.html", "seeds.html", "leaderboards/vsepp.html",
    "leaderboards/kernels.html", "leaderboards/systems.html", "leaderboards/index.html", "api/metrics.html",
)  # fmt: skip


def record_of(site: Path, words: str) -> Path:
    return next(page for page in sorted((site / "records").glob("*.html")) if words in page.name)


def serious(page) -> list[object]:
    """What axe finds serious or worse: the rule, and the first places."""
    return [
        (rule["id"], rule["help"], [node["html"] for node in rule["nodes"]][:3])
        for rule in Axe().run(page, options={"preload": False}).response["violations"]
        if rule["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_the_screen_and_axe_finds_nothing_serious(visit, site, page):
    page = visit(site / page).page
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.evaluate(UNFOLD)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert serious(page) == []


@pytest.mark.parametrize("name", ["-s1-", "a_b_script"])
def test_a_record_fits_the_screen_and_axe_finds_nothing_serious(visit, site, name):
    page = visit(record_of(site, name)).page
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert serious(page) == []


def test_the_first_page_of_all_committed_records_loads_less_than_a_megabyte(visit, committed):
    page = visit(committed / "claims.html").page
    loaded: list[str] = []
    page.on("request", lambda request: loaded.append(request.url))
    page.goto((committed / "index.html").as_uri(), wait_until="networkidle")
    files = {Path(url.removeprefix("file://").partition("?")[0]) for url in loaded}
    assert committed / "index.html" in files
    assert 10_000 < sum(file.stat().st_size for file in files) < FIRST_PAGE


@pytest.mark.parametrize("name", ["numbers", "leaderboards/karpathy", "leaderboards/kernels", "leaderboards/encoders"])
def test_the_pages_of_all_committed_records_fit_the_screen(visit, committed, name):
    page = visit(committed / f"{name}.html").page
    page.evaluate(UNFOLD)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def cells(page, table: str, column: int) -> list[str]:
    return page.locator(f"{table} tbody tr:visible td:nth-child({column})").all_inner_texts()


def test_numbers_are_sorted_by_a_heading_best_first_and_then_worst_first(visit, site):
    page = visit(site / "numbers.html").page
    heading = page.locator("#ours th", has_text="ours")
    heading.get_by_role("button").click()
    ours = [float(text.split(" ")[0]) for text in cells(page, "#ours", 3)]
    assert len(set(ours)) > 3
    assert ours == sorted(ours, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    heading.get_by_role("button").click()
    assert [float(text.split(" ")[0]) for text in cells(page, "#ours", 3)] == sorted(ours)


def test_rows_without_a_number_come_last_in_both_directions(visit, site):
    page = visit(site / "numbers.html").page
    for _ in range(2):
        page.locator("#baselines th", has_text="ours").get_by_role("button").click()
        ours = cells(page, "#baselines", 3)
        empty = [text.strip() == "" for text in ours]
        assert any(empty)
        assert not all(empty)
        assert empty == sorted(empty)


def test_a_table_of_a_papers_page_is_sorted_too(visit, site):
    page = visit(site / "leaderboards/vsepp.html").page
    table = page.locator("table", has_text="rsum").first
    table.get_by_role("button", name="recipe").click()
    names = table.locator("tbody tr td:nth-child(2)").all_inner_texts()
    assert len(names) > 1
    assert names == sorted(names, key=str.lower)


@pytest.mark.parametrize(
    ("column", "value", "place"), [("paper", "vsepp", 9), ("verdict", "pending", 5), ("data set", "coco", 8)]
)
def test_numbers_are_filtered_by_a_column(visit, site, column, value, place):
    page = visit(site / "numbers.html").page
    rows = page.locator("table.numbers tbody tr:visible")
    everything = rows.count()
    page.get_by_role("combobox", name=column, exact=True).select_option(value)
    assert 0 < rows.count() < everything
    assert page.get_by_role("status").inner_text() == f"{rows.count():,} of {everything:,} rows"
    shown = cells(page, "#own", place)
    assert shown
    assert {text.strip().split(",")[0] for text in shown} == {value}
    assert f"{column.replace(' ', '+')}={value}" in page.url


def test_a_filter_leaves_no_empty_section_and_is_kept_in_the_address(visit, site):
    page = visit(site / "numbers.html", "#verdict=pending&paper=vsepp").page
    assert page.get_by_role("combobox", name="verdict", exact=True).input_value() == "pending"
    assert page.locator("#own").is_visible()
    assert page.locator("#ours").is_hidden()  # no verdict is given there
    page.get_by_role("searchbox", name="words").fill("no such word")
    assert page.get_by_role("status").inner_text().startswith("0 of ")


def test_a_number_leads_to_its_record_and_the_record_to_its_command(visit, site):
    page = visit(site / "numbers.html").page
    page.get_by_role("link", name="seed 2").first.click()
    assert page.get_by_role("heading", level=1).inner_text() == "vsepp, seed 2"
    assert page.locator("pre.command").inner_text() == "capbench run vsepp --preset vsepp --seed 2"
    assert page.get_by_role("img", name="rsum on validation by epoch").is_visible()
    page.locator("summary", has_text="The curve's values").click()
    assert page.get_by_role("region", name="The curve's values").locator("tbody tr").count() == 3


def test_the_keyboard_reaches_a_heading_and_sorts(visit, site):
    page = visit(site / "claims.html").page
    page.get_by_role("searchbox", name="words").focus()
    for _ in range(3):  # the table's frame, then its headings: claim, outcome
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "outcome"
    page.keyboard.press("Enter")
    assert page.locator("th", has_text="outcome").get_attribute("aria-sort") == "ascending"


def test_hostile_names_are_text(visit, site):
    shown = HOSTILE.replace("\u202e", "\ufffd")
    for name in ("numbers.html", "seeds.html", "leaderboards/vsepp.html", "leaderboards/systems.html"):
        page = visit(site / name).page
        page.evaluate(UNFOLD)
        assert page.get_by_text(shown).count() > 0, name
        assert page.title() != "owned"
        assert page.locator("img[src=x]").count() == 0
    page = visit(record_of(site, "vsepp-a_b_script")).page
    assert page.get_by_role("heading", level=1).inner_text() == f"{shown}, seed 0"
    assert page.locator("pre.command").inner_text() == shown
    assert page.title() == f"{shown}, seed 0 - capbench"


def test_the_search_finds_a_function(visit, site):
    page = visit(site / "index.html").page
    if page.viewport_size["width"] < 1000:
        page.locator(".md-header__button[for=__search]").click()
    page.get_by_role("textbox", name="Search").press_sequentially("paired_bootstrap")
    page.locator(".md-search-result__link").first.wait_for()
    assert page.locator(".md-search-result__link", has_text="paired_bootstrap").count() > 0


def test_a_reader_may_choose_the_other_colours(visit, site):
    page = visit(site / "index.html").page
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("label[for^=__palette]:visible").first.click()
    page.wait_for_function(f"getComputedStyle(document.body).backgroundColor !== '{before}'")
    assert serious(page) == []


def test_print_opens_every_fold_and_hides_what_is_clicked(visit, site, tmp_path):
    page = visit(site / "leaderboards/vsepp.html").page
    page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert page.locator(".md-typeset details:not([open])").count() == 0
    page.emulate_media(media="print")
    assert page.locator(".md-header").is_hidden()
