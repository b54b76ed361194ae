"""What MkDocs is told: the order of the pages, the theme, how docstrings are shown."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from capbench.leaderboard import reliability, systems
from capbench.runs.paper import papers
from capbench.site import api

# What every page loads; the looks of pictures come with galleries alone.
STYLES = ("assets/site.css", "assets/look.css", "assets/gallery.css")
SCRIPTS = ("assets/site.js", "assets/look.js", "assets/gallery.js")


def configuration(files: set[str], sources: Path, made: Path) -> dict[str, Any]:
    """What MkDocs is told."""
    named = {name: escape(paper.title.partition(": ")[0]) for name, paper in papers().items()}
    boards = {f"leaderboards/{name}.md": title for name, title in named.items()}
    guides = {f"reproductions/{name}/README.md": title for name, title in named.items()}
    others = {"kernels.md": "Kernels", "encoders.md": "Encoders", systems.PAGE: "Other systems"}
    others[reliability.PAGE] = "Reliability"
    nav: list[Mapping[str, Any]] = [
        {"Home": "index.md"},
        {"Results": [
            {"All numbers": "numbers.md"},
            {"Claims": "claims.md"},
            {"Seeds and sources": "seeds.md"},
            *_entries(boards, files),
            *_entries({f"leaderboards/{page}": title for page, title in others.items()}, files),
            {"How to read": "leaderboards/README.md"},
        ]},
        {"Galleries": "galleries/index.md" if "galleries/index.md" in files else ""},
        {"Papers": _entries(guides, files)},
        {"Library": [{title: path} for path, title, _ in api.pages()]},
        {"Project": _entries({"CONTRIBUTING.md": "Contributing", "CHANGELOG.md": "Changes"}, files)},
    ]  # fmt: skip
    return {
        "site_name": "capbench",
        "docs_dir": str(sources),
        "site_dir": str(made),
        "use_directory_urls": False,
        "nav": [entry for entry in nav if all(entry.values())],
        "not_in_nav": "/records/\n/leaderboards/\n/galleries/",
        "theme": _theme(),
        "extra": {"generator": False, "polyfills": ["assets/iframe-worker.js"]},  # in place of one from elsewhere
        "extra_css": [path for path in STYLES if path in files],
        "extra_javascript": [path for path in SCRIPTS if path in files],
        "markdown_extensions": ["admonition", "md_in_html", "pymdownx.superfences", "pymdownx.highlight", "toc"],
        "plugins": ["search", {"mkdocstrings": {"handlers": {"python": _docstrings()}}}, "offline"],
    }


def _entries(titles: Mapping[str, str], files: set[str]) -> list[dict[str, str]]:
    return [{title: path} for path, title in titles.items() if path in files]


def _theme() -> dict[str, Any]:
    def palette(scheme: str, icon: str, other: str) -> dict[str, Any]:
        return {
            "media": f"(prefers-color-scheme: {'dark' if scheme == 'slate' else 'light'})",
            "scheme": scheme, "primary": "indigo", "accent": "indigo",
            "toggle": {"icon": icon, "name": f"Switch to {other}"},
        }  # fmt: skip

    dark, light = "material/weather-night", "material/weather-sunny"
    return {
        "name": "material",
        "font": False,
        "features": ["navigation.tabs", "navigation.top", "navigation.indexes", "content.code.copy", "toc.follow"],
        "palette": [palette("default", light, "dark"), palette("slate", dark, "light")],
    }


def _docstrings() -> dict[str, Any]:
    return {
        "paths": [str(api.PACKAGE.parent)],
        "load_external_modules": False,
        "options": {
            "extensions": [{f"{api.__name__}:Examples": {}}],
            "filters": ["!^_"],
            "merge_init_into_class": True,
            "show_source": False,
            "show_root_heading": True,
            "show_root_full_path": True,
            "show_signature_annotations": True,
            "separate_signature": True,
            "members_order": "source",
            "heading_level": 2,
        },
    }
