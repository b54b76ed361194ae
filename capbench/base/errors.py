"""The error that a user can fix."""

from __future__ import annotations


class CapbenchError(Exception):
    """Bad input: a file, a field, a value or an option.

    The message names it and says what to do. The command line prints the message and exits with 2. Any other
    exception is a defect of capbench and keeps its traceback.
    """
