"""The `capbench` command, a module for each group of subcommands.

Only the body of a subcommand imports torch and other slow libraries, so that help and refusals are instant.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

REFUSED, STOPPED, INTERRUPTED, UNREAD = 2, 75, 130, 141


def main() -> None:
    """Run `capbench` with the words of the command line; the help of `capbench.cli.app` lists the exit codes."""
    os.environ["MPLBACKEND"] = "agg"  # matplotlib draws to files, whatever the environment asks for
    try:
        try:
            _main()
        finally:
            sys.stdout.flush()  # here, not when the interpreter ends
    except KeyboardInterrupt:  # also while a module is imported
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not unread:
            raise
        for stream in unread:  # which the interpreter flushes once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(UNREAD)


def _has_no_reader(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    import select

    poll = select.poll()
    poll.register(stream, 0)  # errors alone
    return bool(poll.poll(0))


def _main() -> None:
    import io

    from cyclopts import CycloptsError

    from capbench.base.console import Terminal
    from capbench.base.errors import CapbenchError, StoppedError
    from capbench.base.launch import name_of_this, started_together
    from capbench.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a letter that the encoding lacks never stops a command
    try:
        if started_together() > 1 and sys.argv[1:2] != ["run"]:
            raise CapbenchError(
                "several processes can only run a paper together; give this command to one, without torchrun"
            )
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except (CapbenchError, CycloptsError) as error:
        line = f"capbench: {name_of_this()}{error}"
        Terminal(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)
        sys.exit(REFUSED)
    except OSError as error:
        if not isinstance(error.filename, str | bytes):  # none, or the number of an open file
            raise
        from pathlib import Path

        from capbench.base.files import printable

        mend = "see that it is there, and that you may read and write it"
        print(f"capbench: {printable(Path(os.fsdecode(error.filename)))}: {error.strerror}; {mend}", file=sys.stderr)
        sys.exit(REFUSED)
    except StoppedError as error:
        print(str(error) or "stopped and saved; the same command resumes", file=sys.stderr)
        sys.exit(STOPPED)
