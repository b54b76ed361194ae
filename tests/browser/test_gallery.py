"""Galleries in a real browser: attention plays, words and boxes are joined, runs stand side by side."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_site import UNFOLD, serious


def page_of(shown: Path, words: str) -> Path:
    return next(page for page in sorted((shown / "galleries").glob("*.html")) if words in page.name)


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def test_every_kind_of_gallery_fits_the_screen_and_axe_finds_nothing_serious(visit, shown):
    for words in ("soft-ours", "vsepp-ours", "brnn-ours", "rnn-regions", "beside", "index"):
        page = visit(page_of(shown, words)).page
        page.wait_for_timeout(300)
        page.evaluate(UNFOLD)
        assert fits(page), words
        assert serious(page) == [], words


def test_attention_plays_word_by_word_and_stops(visit, shown):
    page = visit(page_of(shown, "soft-ours")).page
    figure = page.locator(".looked", has=page.locator(".spoken button:nth-of-type(2)")).first
    words, light = figure.locator(".spoken button"), figure.locator(".light")
    expect(light).to_be_hidden()
    figure.get_by_role("button", name="Play").click()
    for number in range(2):
        expect(words.nth(number)).to_have_attribute("aria-pressed", "true")
        assert light.get_attribute("src") == words.nth(number).get_attribute("data-light")
    figure.get_by_role("button", name="Stop").click()
    words.last.focus()
    page.keyboard.press("Enter")
    expect(words.last).to_have_attribute("aria-pressed", "true")
    expect(light).to_be_visible()
    page.keyboard.press("Enter")
    expect(light).to_be_hidden()


@pytest.mark.parametrize("kind", ["brnn-ours", "rnn-regions"])
def test_boxes_and_words_have_one_colour_and_are_joined(visit, shown, kind):
    page = visit(page_of(shown, kind)).page
    entry = page.locator(".aligned", has=page.locator("g[data-region]")).first
    region = entry.locator("g[data-region]").first.get_attribute("data-region")
    colour = entry.locator("g .frame").first.evaluate("one => getComputedStyle(one).stroke")
    chip = entry.locator(f"tr[data-region='{region}'] i").first
    assert chip.evaluate("one => getComputedStyle(one).backgroundColor") == colour
    chip.hover()
    joined = entry.locator(".joined")
    assert set(joined.evaluate_all("parts => parts.map(part => part.dataset.region)")) == {region}
    expect(page.locator(".true").first).to_have_css("stroke-dasharray", "6px, 5px")


def test_a_word_filters_the_entries(visit, shown):
    page = visit(page_of(shown, "vsepp-ours")).page
    entries = page.locator("article.entry")
    everything = entries.count()
    status = page.locator(".gallery-filter + [role=status]")
    expect(status).to_have_text(f"{everything} of {everything} entries")
    page.get_by_label("a word of a caption").fill("CIRCLE")
    expect(status).not_to_have_text(f"{everything} of {everything} entries")
    left = page.locator("article.entry:visible")
    assert 0 < left.count() < everything
    assert all("circle" in text.lower() for text in left.all_text_contents())
    page.get_by_label("a word of a caption").fill("no such (word")
    expect(status).to_have_text(f"0 of {everything} entries")


def test_two_runs_stand_side_by_side_and_the_choice_is_kept_in_the_address(visit, shown):
    page = visit(page_of(shown, "soft-ours")).page
    page.get_by_role("link", name="Beside another run").click()
    left, right = (page.get_by_label(side) for side in ("left", "right"))
    expect(left).to_have_value(re.compile("soft-ours"))
    assert left.input_value() != right.input_value()
    said = page.locator(".pair .said")
    expect(said).to_have_count(8)
    boxes = [page.locator(f".pair [data-side={side}]").first.bounding_box() for side in "ab"]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    right.select_option(index=left.evaluate("select => select.selectedIndex"))
    expect(page.locator(".pair [data-side=b] .looked")).to_have_count(4)
    assert "b=" in page.url


def test_pictures_wait_until_they_are_seen_and_right_ones_are_marked_by_more_than_colour(visit, shown):
    page = visit(page_of(shown, "vsepp-ours")).page
    assert set(page.locator(".gallery img").evaluate_all("all => all.map(one => one.loading)")) == {"lazy"}
    for words, mark in (("right", "✓ right"), ("wrong", "✗ another's")):
        marks = page.locator(f".hits .{words} small").all_text_contents()
        assert marks
        assert all(text.startswith(mark) for text in marks)


def test_galleries_are_in_the_navigation_only_where_there_are_any(visit, shown, site):
    assert visit(shown / "index.html").page.locator(".md-nav__link, .md-tabs__link", has_text="Galleries").count() > 0
    assert visit(site / "index.html").page.locator(".md-nav__link, .md-tabs__link", has_text="Galleries").count() == 0
