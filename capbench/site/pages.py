"""What the pages of the site say, as markdown: a pure function of the records and of the code at hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from capbench import leaderboard
from capbench.evidence.records import SYSTEMS, Result
from capbench.evidence.results import data_name
from capbench.leaderboard import cells
from capbench.leaderboard.board import Board
from capbench.leaderboard.markdown import plain
from capbench.leaderboard.page import claims
from capbench.leaderboard.pooled import marks
from capbench.leaderboard.reliability import survived
from capbench.leaderboard.systems import PAGE
from capbench.metrics import registry
from capbench.runs.paper import Paper, metric_of, papers
from capbench.site import api
from capbench.site.curves import curves
from capbench.site.links import relinked, unfolded
from capbench.site.numbers import sections
from capbench.site.seeds import confidences, settings

if TYPE_CHECKING:
    from capbench.site.gallery.finding import Gallery

Files = dict[str, bytes]  # by path below the site's folder of documents

BOARDS, RECORDS = "leaderboards", "records"
ASSETS = Path(__file__).parent / "assets"
REPOSITORY = api.PACKAGE.parent  # or the folder of installed packages
_ELSEWHERE_ON_THE_PAGE = {
    *("metrics", "curve", "recipe", "notes", "command"),
    *("paper", "preset", "dataset", "split", "protocol", "encoder", "view", "region_provider", "seed"),
}


def documents(folder: Path, galleries: Sequence[Gallery] = ()) -> Files:
    """Every page and file before MkDocs.

    They are those of the records in `folder`, of the docstrings, of a checkout's texts, and of galleries.
    """
    found = leaderboard.contents(papers(), folder)
    records = found.results.latest.records
    pages = {f"{BOARDS}/results/{record.file}": record_page(record) for record in records}
    files = {f"{BOARDS}/{path}": text for path, text in leaderboard.render_all(found, cells.seed_links).items()}
    files |= dict(_texts()) | {f"assets/{path.name}": path.read_bytes() for path in ASSETS.iterdir()}
    files |= {f"{RECORDS}/{r.file}": (folder / "results" / r.file).read_bytes() for r in records}
    for part in ("timings", "probes", "reliability"):
        files |= {f"{BOARDS}/{part}/{r.file}": (folder / part / r.file).read_bytes() for r in getattr(found, part)}

    def known(path: str) -> str | None:
        return next((place for place in (path, f"{path}/README.md") if place in files), pages.get(path))

    for path in [path for path in files if path.endswith(".md")]:
        files[path] = unfolded(relinked(files[path].decode(), path, known)).encode()
    library = {path: text for path, _, text in api.pages()}
    shown = {gallery.record.file: gallery.name for gallery in galleries if gallery.record}
    made = library | dict(_tables(found, bool(galleries))) | dict(_records(records, shown))
    files |= {path: text.encode() for path, text in made.items()}
    return files | dict(_galleries(galleries, {record.file: record_page(record) for record in records}))


def _galleries(galleries: Sequence[Gallery], records: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    if galleries:  # without them, nothing imports torch
        from capbench.site.gallery.pages import files
        from capbench.tools.markup import ASSETS as LOOKS

        yield from ((f"assets/{path.name}", path.read_bytes()) for path in LOOKS.iterdir())
        yield from files(galleries, _templates(), records)


def record_page(record: Result) -> str:
    """The path of a record's page."""
    return f"{RECORDS}/{Path(record.file).stem}.md"


def _templates() -> Environment:
    """Templates in which every field is escaped."""
    made = Environment(
        loader=PackageLoader("capbench.site"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "plain": plain,
        "difference": cells.difference,
        "address": lambda record: record_page(record).replace(".md", ".html"),
    }
    return made


def _texts() -> Iterator[tuple[str, bytes]]:
    """The papers' READMEs and reported numbers, and the guides where the package lies in a checkout."""
    for paper in papers().values():
        for name in ("README.md", "reported.csv"):
            if (paper.folder / name).is_file():
                yield f"reproductions/{paper.name}/{name}", (paper.folder / name).read_bytes()
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        if (REPOSITORY / name).is_file() and (REPOSITORY / "pyproject.toml").is_file():
            yield name, (REPOSITORY / name).read_bytes()


def _tables(found: leaderboard.Contents, galleries: bool) -> Iterator[tuple[str, str]]:
    made = _templates()
    records = found.results.latest.records
    yield (
        "index.md",
        made.get_template("home.md.j2").render(
            boards=[*map(_card, found.boards)],
            records=len(records),
            systems=any(r.paper == SYSTEMS for r in records),
            faults=survived(found.reliability) if found.reliability else "",
            galleries=galleries,
        ),
    )
    yield "numbers.md", made.get_template("numbers.md.j2").render(sections=sections(found.boards))
    yield "claims.md", made.get_template("claims.md.j2").render(boards=found.boards)
    known = {board.paper: confidences(board) for board in found.boards if board.paper.reported}
    rows = [*settings(found.boards)]
    yield "seeds.md", made.get_template("seeds.md.j2").render(rows=rows, confidences=known)


def _card(board: Board) -> dict[str, Any]:
    """What the first page says of a paper."""
    own, others = board.tally("target"), board.tally("baseline")
    return {
        "paper": board.paper,
        "own": cells.counts(own) if own else "",
        "others": cells.counts(others) if others else "",
        "claims": claims(board) if board.outcomes else "",
    }


def _records(records: Sequence[Result], galleries: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    template, known = _templates().get_template("record.md.j2"), papers()
    for record in records:
        yield (
            record_page(record),
            template.render(_fields(record, known.get(record.paper)), gallery=galleries.get(record.file)),
        )


def _fields(record: Result, paper: Paper | None) -> dict[str, Any]:
    """What the template of a record's page is filled with."""
    metric = metric_of(paper, record.recipe) if paper else ""
    metrics = [(entry, record.metrics[entry.key]) for entry in registry.columns(record.metrics, lesser=True)]
    return {
        "title": json.dumps(escape(plain(f"{record.variant}, seed {record.seed}"))),  # MkDocs takes titles for HTML
        "record": record,
        "above": _page_above(record, paper),
        "data": data_name(record),
        "remarks": marks(record, paper),
        "metrics": metrics,
        "ruled": any(entry.rule for entry, _ in metrics),
        "metric": metric,  # that chose the snapshot
        "curves": curves(record, metric),
        "recipe": list(_flat(record.recipe)),
        "made": list(_flat(record.model_dump(mode="json", exclude=_ELSEWHERE_ON_THE_PAGE))),
    }


def _page_above(record: Result, paper: Paper | None) -> str:
    """The address of the page that shows a record; empty where none does."""
    if record.paper == SYSTEMS:
        return f"../{BOARDS}/{PAGE.replace('.md', '.html')}"
    return f"../{BOARDS}/{paper.name}.html" if paper else ""


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested fields under dotted names; those that are empty are left out."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value not in (None, "", []):
            yield f"{prefix}{name}", value
