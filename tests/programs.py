"""
Programs that a test calls.
"""

import os
import shutil

import pytest


def needed(*programs: str) -> None:
    """
    Skip the test where one of them is missing; tests/conftest.py makes that a failure where all can be had.
    """
    for program in programs:
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
            pytest.skip(f"needs {program}")
