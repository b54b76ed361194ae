"""The one error that a user can mend."""

from __future__ import annotations


class CapbenchError(Exception):
    """A fault in what was given to capbench: a file, a field, a value, an option.

    The message names it and says what to do. The command line prints the message alone and exits with 2;
    anything else that is raised is a defect of capbench and keeps its traceback.
    """
