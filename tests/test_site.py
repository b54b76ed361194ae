"""The site: every number leads to its records, same records give same bytes, and no field is read as markup."""

from __future__ import annotations

import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path

import markdown
import pytest

from capbench import leaderboard
from capbench.base.errors import CapbenchError
from capbench.cli.app import app
from capbench.evidence.records import load_results, save_result
from capbench.runs.paper import papers
from capbench.site import api, build, pages
from capbench.site.curves import HEIGHT, WIDTH, curves
from capbench.site.links import relinked, unfolded
from capbench.site.numbers import Section, sections
from capbench.site.seeds import settings
from tests.made_up import HOSTILE, made_up_leaderboards, made_up_record

SHOWN = HOSTILE.replace("\u202e", "\ufffd")  # a mark that turns the direction of reading is replaced


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._script = False
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._script = tag == "script"

    def handle_endtag(self, tag):
        self._script = False

    def handle_data(self, data):
        if self._script:
            self.scripts.append(data)
        else:
            self.text += data


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    return made_up_leaderboards(tmp_path_factory.mktemp("records") / "leaderboards")


@pytest.fixture(scope="module")
def site(records, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "site"
    assert build.build(records, out) == out / "index.html"
    return out


def board_sections(folder: Path) -> dict[str, Section]:
    return {each.name: each for each in sections(leaderboard.contents(papers(), folder).boards)}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_link_to_a_file_without_a_page_becomes_its_words_and_others_stay():
    text = "[a](../README.md#b) [c](gone.py) [d](https://example.org/x) [e](#f) ![g](plots/h.svg)"
    known = {"README.md": "index.md"}.get
    assert relinked(text, "leaderboards/x.md", known) == (
        "[a](../index.md#b) c [d](https://example.org/x) [e](#f) ![g](plots/h.svg)"
    )


def test_a_table_in_a_fold_is_a_table():
    folded = "<details><summary>more</summary>\n\n| a |\n|---|\n| b |\n\n</details>"
    html = markdown.markdown(unfolded(folded), extensions=["md_in_html", "tables"])
    assert "<td>b</td>" in html
    assert "<summary>more</summary>" in html


def test_an_example_of_a_docstring_is_code_up_to_the_blank_line_after_it():
    docstring = "Twice.\n\n>>> double(2)\n4\n>>> double(3)\n6\n\nMore."
    assert api.fenced(docstring) == "Twice.\n\n```pycon\n>>> double(2)\n4\n>>> double(3)\n6\n```\n\nMore."


def test_numbers_of_the_paper_of_other_systems_and_ours_alone_stand_apart(records):
    shown = board_sections(records)
    assert [*shown] == ["own", "baselines", "ours", "context"]
    roles = {name: {row.match.reported.role for row in each.rows if row.match} for name, each in shown.items()}
    assert roles == {"own": {"target"}, "baselines": {"baseline"}, "ours": set(), "context": {"context"}}
    assert {row.match for row in shown["ours"].rows} == {None}
    assert {row.runs for row in shown["context"].rows} == {None}
    reported = sum(len(paper.reported) for paper in papers().values())
    assert sum(row.match is not None for each in shown.values() for row in each.rows) >= reported


def test_a_fraction_of_a_paper_is_shown_in_its_digits_on_our_scale(records):
    rows = [(row, row.match.reported) for each in board_sections(records).values() for row in each.rows if row.match]
    fractions = [(row.reported.rstrip("†°"), number.value) for row, number in rows if number.unit == "fraction"]
    assert len(fractions) > 10
    for shown, value in fractions:
        assert float(shown) == pytest.approx(100 * float(value))
        assert shown.replace(".", "").lstrip("0") == value.replace(".", "").lstrip("0")


def test_the_spread_is_the_deviation_over_seeds_and_one_seed_has_none(records):
    rows = [*settings(leaderboard.contents(papers(), records).boards)]
    three = next(row for row in rows if row.runs.first.preset == "vsepp")
    assert (three.metric, three.mean, three.spread) == ("rsum", "201.0", f"{statistics.stdev([200, 201, 202]):.1f}")
    assert three.test == "t over 3 seeds"
    one = next(row for row in rows if row.runs.first.preset == "soft-ours")
    assert (one.mean, one.spread) == ("21.0", "")


def test_a_curve_goes_from_the_first_epoch_to_the_last_and_from_the_least_to_the_largest():
    epoch = {"learning_rate": 0.1, "seconds": 1.0}
    drawn = [
        {**epoch, "epoch": number, "loss": loss, "validation": {"rsum": 5.0}} for number, loss in enumerate([4, 2, 3])
    ]
    loss, rsum = curves(made_up_record(curve=drawn, best_epoch=1), "rsum")
    assert loss.points == ((0, 0), (WIDTH / 2, HEIGHT), (WIDTH, HEIGHT / 2))
    assert (loss.low, loss.high, loss.epochs, loss.dots) == ("2", "4", 3, ())
    assert {y for _, y in rsum.points} == {HEIGHT / 2}  # level
    assert rsum.dots == ((WIDTH / 2, HEIGHT / 2),)


@pytest.mark.parametrize("losses", [[], [1.0], [None, 1.0], [None, None]], ids=str)
def test_fewer_than_two_values_are_no_curve(losses):
    epoch = {"learning_rate": 0.1, "seconds": 1.0, "validation": {}}
    drawn = [{**epoch, "epoch": number, "loss": loss} for number, loss in enumerate(losses)]
    assert curves(made_up_record(curve=drawn), "rsum") == []


def test_every_row_of_ours_links_each_of_its_seeds(site, records):
    linked = {link.get("href") for tag, link in Parsed(site / "numbers.html").elements if tag == "a"}
    for record in load_results(records / "results"):
        if record.paper in papers():
            assert pages.record_page(record).replace(".md", ".html") in linked


def test_the_tables_of_a_papers_page_link_the_record_of_each_seed(site, records):
    links = [link.get("href") for tag, link in Parsed(site / "leaderboards/vsepp.html").elements if tag == "a"]
    for record in load_results(records / "results", "vsepp"):
        address = f"../{pages.record_page(record)}".replace(".md", ".html")
        assert links.count(address) >= 3  # the first table, that of all metrics, and the provenance


def test_the_page_of_a_record_has_its_command_scores_recipe_curve_and_the_record_itself(site, records):
    (record,) = [each for each in load_results(records / "results") if each.preset == "vsepp" and each.seed == 1]
    page = site / pages.record_page(record).replace(".md", ".html")
    parsed = Parsed(page)
    for words in (record.command, "margin", "0.2", "201.0", "rsum on validation", "features_fingerprint"):
        assert words in parsed.text
    assert sum(tag == "polyline" for tag, _ in parsed.elements) == 2
    assert ("a", {"href": record.file, "download": None}) in parsed.elements
    assert (page.parent / record.file).read_bytes() == (records / "results" / record.file).read_bytes()


def test_other_systems_have_a_page_and_their_records_too(site, records):
    (record,) = load_results(records / "results", "systems")
    links = [link.get("href") for tag, link in Parsed(site / "leaderboards/systems.html").elements if tag == "a"]
    assert f"../{pages.record_page(record)}".replace(".md", ".html") in links


def test_the_pages_of_the_library_hold_every_name_that_capbench_offers(site):
    import capbench

    headings = {
        attributes.get("id")
        for page in (site / "api").glob("*.html")
        for tag, attributes in Parsed(page).elements
        if tag in ("h2", "h3")
    }
    offered = {f"capbench.{name}" for name in vars(capbench)["__all__"]}
    assert offered <= headings | {"capbench.__version__"}
    assert {f"capbench.{name}" for names in api.offered().values() for name in names} == offered


@pytest.mark.fault("markup in the fields of a record")
def test_a_hostile_name_is_text_on_every_page(site):
    shown = 0
    for page in site.rglob("*.html"):
        parsed = Parsed(page)
        assert "\u202e" not in page.read_text("utf-8"), page
        assert not any("owned" in script for script in parsed.scripts), page
        assert not any(link.get("src") == "x" or "onerror" in link for _, link in parsed.elements), page
        assert "49" not in SHOWN
        shown += SHOWN in parsed.text
    assert shown >= 6  # numbers, seeds, the paper, other systems, reliability, their records


def test_no_page_loads_anything_from_elsewhere_and_no_link_inside_is_dead(site):
    loads = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "a": "href"}
    parsed = {page: Parsed(page) for page in site.rglob("*.html")}
    anchors = {
        page.resolve(): {link.get("id") or link.get("name") for _, link in of.elements} for page, of in parsed.items()
    }
    for page, of in parsed.items():
        for tag, attributes in of.elements:
            address = attributes.get(loads.get(tag, ""))
            if address is None or (tag == "a" and address.startswith(("https://", "http://", "mailto:"))):
                continue
            assert "//" not in address, (page, tag, address)
            path, _, anchor = address.partition("#")
            target = (page.parent / path.partition("?")[0]).resolve() if path else page.resolve()
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (page, address)
            if anchor and target in anchors and "=" not in anchor:
                assert anchor in anchors[target], (page, address)
    for style in site.rglob("*.css"):
        assert "@import" not in style.read_text("utf-8")


def test_same_records_give_the_same_bytes_wherever_they_are_built(site, records, tmp_path):
    again = tmp_path / "elsewhere" / "deep" / "pages"
    build.build(records, again)
    first, second = bytes_of(site), bytes_of(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert str(records).encode() not in b"".join(first.values())


def test_check_names_what_is_changed_missing_and_left_over(site, records, tmp_path, capsys):
    out = tmp_path / "site"
    shutil.copytree(site, out)
    words = ["site", "--out", str(out), "--leaderboards", str(records), "--check"]
    app(words, exit_on_error=False, result_action="return_value")
    assert capsys.readouterr().out == "the site matches its records\n"
    (out / "claims.html").write_text("changed")
    (out / "numbers.html").unlink()
    (out / "more.html").touch()
    with pytest.raises(SystemExit) as exit:
        app(words, exit_on_error=False, result_action="return_value")
    assert exit.value.code == 1
    stale = [line.partition(";")[0] for line in capsys.readouterr().out.splitlines()]
    assert stale == [f"stale: {out / name}" for name in ("claims.html", "more.html", "numbers.html")]
    assert (out / "claims.html").read_text() == "changed"


def test_a_site_is_replaced_as_a_whole(records, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path("site")
    out.mkdir()
    (out / build.MARK).touch()
    (out / "old.html").touch()
    build.build(records, out)
    assert (out / "index.html").is_file()
    assert not (out / "old.html").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_folder_that_is_no_site_is_neither_overwritten_nor_checked(records, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(CapbenchError, match="is no site of capbench; choose another folder with --out"):
            build.build(records, out)
        with pytest.raises(CapbenchError, match="is no site of capbench; build one with `capbench site --out"):
            build.stale(records, out)
    assert bytes_of(tmp_path) == {"notes.txt": b"mine"}


def test_a_folder_without_records_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(CapbenchError, match="typo/results has no record"):
        build.build(tmp_path / "typo", tmp_path / "site")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(records, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CapbenchError, match=r"cannot write the site .*file/site"):
        build.build(records, tmp_path / "file" / "site")


def test_without_mkdocs_the_extra_is_named(records, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(CapbenchError, match=r"pip install 'capbench\[site\]'"):
        build.build(records, tmp_path / "site")
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_is_added_makes_a_site_stale(site, records, tmp_path):
    more = tmp_path / "leaderboards"
    shutil.copytree(records, more)
    save_result(made_up_record(preset="vse0", seed=1, metrics={"rsum": 150.0}), {}, more / "results")
    assert Path("numbers.html") in build.stale(more, site)
