"""
What the documentation shows works.
"""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.mark.btrfs
@pytest.mark.parametrize("page", ["moving.md", "pybtrfs.md"])
def test_examples(page: str, btrfs: Path) -> None:
    """
    The examples of a page run one after the other.
    """
    examples = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert examples
    names = {"root": btrfs}
    for example in examples:
        exec(example, names)
