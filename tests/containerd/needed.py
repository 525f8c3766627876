"""
Requirements of tests.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from .builds import UnavailableError

T = TypeVar("T")


def needed(get: Callable[[T], Path], name: T) -> Path:
    """
    Return the path that *get* of builds.py returns for *name*, or skip the test if it is not available.

    tests/conftest.py turns the skip into a failure on machines where nothing is skipped.
    """
    try:
        return get(name)
    except UnavailableError as error:
        pytest.skip(str(error))
