"""
The tables of the documentation are complete, and name what there is.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from pybtrfs import ioctl
from tests.pybtrfs.test_header import HEADER
from tests.pybtrfs.test_ioctl import CASES, QUOTA_CASES

ROOT = Path(__file__).parent.parent.parent
NUMBERS = {
    name.removeprefix("PY" if name.startswith("PYBTRFS_IOC_") else "PYBTRFS_"): int(number or value, 0)
    for name, number, value in re.findall(
        r"^#define (PYBTRFS_(?:IOC|FS_IOC|LOOP)_\w+) (?:_IO\w*\((?:PYBTRFS_IOCTL_MAGIC|'f'), (\d+)|(0x\w+))",
        HEADER,
        re.MULTILINE,
    )
}
REFUSED = {case.name for case in CASES + QUOTA_CASES if case.refused}


def table(page: str) -> list[list[str]]:
    """
    The rows of all tables of a page, less their headings.
    """
    rows = []
    for block in re.findall(r"(?:^\|.*\n)+", (ROOT / "docs" / page).read_text(), re.MULTILINE):
        rows += [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]
    return rows


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def is_there(test: str) -> bool:
    """
    Whether the file of a test below ``tests/`` has a function of the name.
    """
    path, name = test.split("::")
    tree = ast.parse((ROOT / "tests" / path).read_text()) if (ROOT / "tests" / path).exists() else ast.Module([])
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def test_every_ioctl_has_its_row() -> None:
    """
    docs/ioctls.md has each ioctl of the header with its number, and each function of the raw floor.
    """
    rows = table("ioctls.md")
    assert {code(row[1])[0]: int(row[0], 0) for row in rows} == NUMBERS
    assert len(rows) == len(NUMBERS) > 35
    functions = {
        name
        for name, value in vars(ioctl).items()
        if inspect.isfunction(value) and value.__module__ == ioctl.__name__ and not name.startswith("_")
    }
    assert {name for row in rows for name in code(row[2])} == functions


@pytest.mark.parametrize("row", table("ioctls.md"), ids=lambda row: code(row[1])[0])
def test_what_is_said_of_an_ioctl(row: list[str]) -> None:
    """
    The function issues the ioctl, what is said to use it names it, the privilege is that of the tests, and the test is
    there.
    """
    _, name, raw, users, linux, privilege, test = row
    for function in code(raw):
        assert f'"{code(name)[0]}"' in inspect.getsource(getattr(ioctl, function))
        if not function.startswith("loop_"):
            assert (privilege == "none") == (function not in REFUSED | {"ino_lookup_user"})
    for user in code(users):
        module, function = user.split(".")
        found = getattr(importlib.import_module(f"pybtrfs.{module}"), function)
        source = Path(inspect.getsourcefile(inspect.unwrap(found)) or "").read_text()
        assert re.search(rf"ioctl\.({'|'.join(code(raw))})\b", source)
    assert re.match(r"[2-6]\.\d+", linux)
    assert is_there(f"pybtrfs/{code(test)[0]}")


def test_a_missing_test_is_noticed() -> None:
    """
    The checks above can fail.
    """
    assert not is_there("pybtrfs/test_ioctl.py::test_nothing")
    assert not is_there("pybtrfs/test_nothing.py::test_quota")
    assert NUMBERS["BTRFS_IOC_SNAP_DESTROY"] == 15
