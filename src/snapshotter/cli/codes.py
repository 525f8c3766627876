"""
Exit codes of the command, and its messages on standard error.
"""

import contextlib
import os
import sys

from snapshotter.errors import DataLossError, Error, InvalidArgumentError, NotFoundError, StoreHeldError
from snapshotter.text import printable

DONE, FAILED, USAGE, HELD, NOT_FOUND, INCONSISTENT, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

_CODES = (
    (InvalidArgumentError, USAGE),
    (StoreHeldError, HELD),
    (NotFoundError, NOT_FOUND),
    (DataLossError, INCONSISTENT),
    (Error, FAILED),
)


def report(error: Error) -> int:
    """
    Print *error* to standard error, and return its exit code.
    """
    return complain(f"{error}{cure(error)}", next(code for kind, code in _CODES if isinstance(error, kind)))


def cure(error: BaseException) -> str:
    """
    Return the cure of *error* to add to its message: to be root, or to install an extra; "" if there is none.
    """
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, ModuleNotFoundError):
        return f": {_installation()}"
    return ": run the command as root" if isinstance(cause, PermissionError) and os.geteuid() else ""


def missing_extra(error: ModuleNotFoundError) -> str:
    """
    Return the message for a missing module of an extra, with a command that installs the extra.
    """
    return f"{error.name} is missing: {_installation()}"


def _installation() -> str:
    """
    Return the command that installs the extra for daemons into this Python.
    """
    import importlib.util  # here, because only this error needs the modules
    import shlex
    import sysconfig

    python = shlex.quote(sys.executable)
    pip = [f"{python} -m pip install"] if importlib.util.find_spec("pip") else [f"uv pip install --python {python}"]
    if sys.prefix == sys.base_prefix and os.path.exists(f"{sysconfig.get_path('stdlib')}/EXTERNALLY-MANAGED"):
        pip.append("--break-system-packages")
    return f"{' '.join(pip)} 'btrfs-snapshotter[daemon]'"


def complain(text: str, code: int) -> int:
    """
    Print *text* to standard error, and return *code*.
    """
    with contextlib.suppress(OSError):
        print("snapshotter:", printable(text), file=sys.stderr)
    return code
