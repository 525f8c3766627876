"""
Exceptions from the measurement of coverage.
"""

import re
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"

PRAGMA = re.compile(r"#\s*pragma[:\s]?\s*no\s*(cover|branch)", re.IGNORECASE)
WITH_REASON = re.compile(r"# pragma: no (cover|branch) - \w.*")


def unexplained(source: str) -> list[str]:
    """
    Return the lines of *source* that coverage excludes without a reason.
    """
    return [line.strip() for line in source.splitlines() if PRAGMA.search(line) and not WITH_REASON.search(line)]


def test_every_exception_has_its_reason() -> None:
    """
    Each line that is excluded from the measurement names its reason.
    """
    assert {str(path): lines for path in SRC.rglob("*.py") if (lines := unexplained(path.read_text()))} == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("raise  # pragma: no cover", True),
        ("raise  # pragma: no branch", True),
        ("raise  # PRAGMA NO COVER because", True),
        ("raise  # pragma: no cover - ", True),
        ("raise  # pragma: no cover - PyPy alone comes here", False),
        ("raise", False),
    ],
)
def test_unexplained_exceptions_are_found(line: str, found: bool) -> None:
    """
    The test above can fail.
    """
    assert bool(unexplained(f"if a:\n    {line}\n")) is found
