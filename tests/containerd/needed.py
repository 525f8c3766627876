"""
What a test cannot do without.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from .builds import UnavailableError

T = TypeVar("T")


def needed(get: Callable[[T], Path], what: T) -> Path:
    """
    What *get*, of builds.py, gives for *what*; where that cannot be had the test is skipped, which tests/conftest.py
    makes a failure where everything can be had.
    """
    try:
        return get(what)
    except UnavailableError as error:
        pytest.skip(str(error))
