"""
Configuration files of other programs: replaced as a whole or not at all, and never without a copy.
"""

import contextlib
import os
import shutil
import tempfile
from datetime import datetime

__all__ = ["write"]


def write(path: str, text: str) -> str:
    """
    Make *text* the content of the file *path*, durably, and return the path of a dated copy of its former content.

    The copy has the same directory, mode and owner. Without a former content, or if *text* is the same, there is none,
    and the result is empty.
    """
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    path = os.path.realpath(path)  # the file behind a link is replaced, and the link stays
    copy = ""
    with contextlib.suppress(FileNotFoundError):
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            if file.read() == text:
                return ""
        copy = _copy(path)
    fd, new = tempfile.mkstemp(prefix=f".{os.path.basename(path)}-", dir=os.path.dirname(path))
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
            if copy:
                shutil.copystat(path, new)
                status = os.stat(path)
                os.fchown(fd, status.st_uid, status.st_gid)
            else:
                os.fchmod(fd, 0o644)
            file.flush()
            os.fsync(fd)
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise
    return copy


def _copy(path: str) -> str:
    copy = f"{path}.{datetime.now().astimezone():%Y-%m-%d-%H%M%S}"
    shutil.copy2(path, copy)
    status = os.stat(path)
    os.chown(copy, status.st_uid, status.st_gid)
    return copy
