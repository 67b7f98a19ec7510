"""The one exception whose message is for the user."""


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one line.

    Raised at the edges (command line, files, checkpoints). `run.py` prints it without a
    traceback and exits with status 2; from Python it is an ordinary exception.
    """
