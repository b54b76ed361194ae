"""Where text is printed."""

from __future__ import annotations

from rich.console import Console


class Terminal(Console):
    """Standard output, or standard error: words between colons stay what they are, and are no emoji."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, emoji=False)

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError where the reader has gone: `capbench.cli` ends the command."""
        raise BrokenPipeError
