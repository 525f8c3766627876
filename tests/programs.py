"""
External programs of tests.
"""

import os
import shutil

import pytest


def needed(*programs: str) -> None:
    """
    Skip the test if a program is missing.

    tests/conftest.py turns the skip into a failure on machines where nothing is skipped.
    """
    for program in programs:
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
            pytest.skip(f"needs {program}")
