"""What commands print."""

from __future__ import annotations

from capbench.base.console import Terminal

console = Terminal()


def say(text: object) -> None:
    """Print a line as it is: no markup, no colours, no emoji, and never broken, so that paths can be copied whole."""
    console.print(str(text), markup=False, highlight=False, soft_wrap=True)
