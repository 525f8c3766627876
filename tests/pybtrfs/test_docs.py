"""
The tables of the documentation are complete, and every name in them exists.
"""

import ast
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

from pybtrfs import ioctl
from pybtrfs.compat import btrfsutil
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


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def table(markdown: str) -> list[list[str]]:
    """
    Return the rows of all tables, without their headings.
    """
    rows = []
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        rows += [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]
    return rows


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def is_there(test: str) -> bool:
    """
    Return whether the test exists below ``tests/``, or the target in the Makefile.
    """
    if test.startswith("make "):
        return f"\n{test.removeprefix('make ')}:" in (ROOT / "Makefile").read_text()
    path, name = test.split("::")
    tree = ast.parse((ROOT / "tests" / path).read_text()) if (ROOT / "tests" / path).exists() else ast.Module([])
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def test_every_ioctl_has_its_row() -> None:
    """
    docs/ioctls.md has each ioctl of the header with its number, and each function of `pybtrfs.ioctl`.
    """
    rows = table(text("ioctls.md"))
    assert {code(row[1])[0]: int(row[0], 0) for row in rows} == NUMBERS
    assert len(rows) == len(NUMBERS) > 35
    functions = {name for name in ioctl.__all__ if inspect.isfunction(getattr(ioctl, name))}
    assert {name for row in rows for name in code(row[2])} == functions


@pytest.mark.parametrize("row", table(text("ioctls.md")), ids=lambda row: code(row[1])[0])
def test_what_is_said_of_an_ioctl(row: list[str]) -> None:
    """
    The function issues the ioctl, each user calls the function, the privilege is the one of the tests, and the test
    exists.
    """
    _, name, raw, users, linux, privilege, test = row
    for function in code(raw):
        assert f'"{code(name)[0]}"' in inspect.getsource(getattr(ioctl, function))
    if not code(raw)[0].startswith("loop_"):
        assert (privilege == "none") == (REFUSED | {"ino_lookup_user"}).isdisjoint(code(raw))
    for user in code(users):
        found = pkgutil.resolve_name(f"pybtrfs.{user}")
        source = Path(inspect.getsourcefile(inspect.unwrap(found)) or "").read_text()
        assert re.search(rf"ioctl\.({'|'.join(code(raw))})\b", source)
    assert re.match(r"[2-6]\.\d+", linux)
    assert is_there(f"pybtrfs/{code(test)[0]}")


@pytest.mark.parametrize("row", table(text("features.md")), ids=lambda row: row[0])
def test_features(row: list[str]) -> None:
    """
    Each name of pybtrfs in docs/features.md exists, and so does each test.
    """
    _, names, tests = row
    for name in code(names):
        assert pkgutil.resolve_name(f"pybtrfs.{name}")
    assert code(tests)
    assert all(is_there(test) for test in code(tests))


def test_moving() -> None:
    """
    Each name in docs/moving.md exists, be it of pybtrfs, libbtrfsutil's binding or python-btrfs.
    """
    areas = {path.stem for path in (ROOT / "src/pybtrfs").iterdir()}
    pages = re.split(r"^(?:## |New )", text("moving.md"), flags=re.MULTILINE)
    assert [page.split()[0] for page in pages] == ["#", "From", "programs", "From", "From"]
    for page in pages:
        for row in table(page):
            assert all(pkgutil.resolve_name(f"pybtrfs.{name}") for name in code(row[-1]) if name.split(".")[0] in areas)
    for row in table(pages[2]):
        assert all(hasattr(btrfsutil, name) for name in code(row[0]))
    for row in table(pages[3]):
        assert all(pkgutil.resolve_name(f"btrfs.{name}") for name in code(row[0]))


def test_a_missing_test_is_noticed() -> None:
    """
    The checks above can fail.
    """
    assert not is_there("pybtrfs/test_ioctl.py::test_nothing")
    assert not is_there("pybtrfs/test_nothing.py::test_quota")
    assert not is_there("make nothing")
    assert NUMBERS["BTRFS_IOC_SNAP_DESTROY"] == 15
