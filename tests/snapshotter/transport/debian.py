"""
Debian's newest libnghttp2 and the headers of the installed one, unpacked and not installed.
"""

from pathlib import Path

import pytest

from tools import debian
from tools.cache import cached


def unpacked(suite: str, package: str) -> Path:
    """
    Return a directory with *package*, without its dependencies, or skip the test if it is not available.

    tests/conftest.py turns the skip into a failure on machines where nothing is skipped.
    """

    def build(tree: Path) -> None:
        with debian.Suite(suite) as opened:
            opened.unpack(package, tree=tree, dependencies=False)

    try:
        return cached(f"{package}-{suite}", build)
    except debian.UnavailableError as error:
        pytest.skip(str(error))
