"""
The C code of the compiled module: the kernel's header against the installed header, and the functions against their
stub.
"""

import ast
import ctypes
import re
import subprocess
from pathlib import Path

import pytest

from pybtrfs import _btrfs, items
from tests import sanitized

INCLUDE = Path(__file__).parent.parent.parent / "src/pybtrfs"
HEADER = (INCLUDE / "btrfs_uapi.h").read_text()
SYSTEM = ["btrfs.h", "btrfs_tree.h", "loop.h", "fs.h", "magic.h", "openat2.h"]
NUMBERS = re.findall(r"^#define (PYBTRFS_\w+) ", HEADER, flags=re.MULTILINE)
PROTOTYPES = re.findall(
    r"^(?:int|int64_t|uint32_t|void) (\w+)\((.*?)\);", (INCLUDE / "btrfs.h").read_text(), flags=re.MULTILINE | re.DOTALL
)
STRUCTS = re.findall(r"^struct (pybtrfs_\w+) \{\n(.*?)^\};", HEADER, flags=re.MULTILINE | re.DOTALL)


def run(tmp_path: Path, body: str) -> dict[str, tuple[int, int]]:
    """
    Return the lines ``NAME OURS THEIRS`` that a C program with *body* prints.
    """
    source = tmp_path / "compare.c"
    includes = "".join(f"#include <linux/{name}>\n" for name in SYSTEM)
    source.write_text(
        f'#include <stdio.h>\n{includes}#include "btrfs_uapi.h"\n'
        '#define SHOW(name, ours, theirs) printf("%s %llu %llu\\n", name, (unsigned long long)(ours), '
        "(unsigned long long)(theirs));\n"
        f"int main(void)\n{{\n{body}return 0;\n}}\n"
    )
    program = tmp_path / "compare"
    subprocess.run(["cc", "-std=gnu11", f"-I{INCLUDE}", "-o", program, source], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: (int(ours), int(theirs)) for name, ours, theirs in map(str.split, lines)}


def different(found: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    return {name: values for name, values in found.items() if values[0] != values[1]}


def test_numbers(tmp_path: Path) -> None:
    """
    Every number has the value of the installed headers, if they define it.
    """
    body = ""
    for ours in NUMBERS:
        for theirs in (ours.removeprefix("PY"), ours.removeprefix("PYBTRFS_")):
            body += f'#ifdef {theirs}\nSHOW("{theirs}", {ours}, {theirs})\n#endif\n'
    found = run(tmp_path, body)
    assert len(found) > 60
    assert different(found) == {}


def test_structs(tmp_path: Path) -> None:
    """
    Every struct has the size and offsets of the installed headers, if they define it.
    """
    installed = "".join((Path("/usr/include/linux") / name).read_text() for name in SYSTEM)
    body = ""
    for ours, content in STRUCTS:
        names = (ours.removeprefix("py"), ours.removeprefix("pybtrfs_"))
        theirs = next((name for name in names if re.search(rf"^struct {name} \{{", installed, re.MULTILINE)), None)
        if theirs is None:
            continue
        body += f'SHOW("{theirs}", sizeof(struct {ours}), sizeof(struct {theirs}))\n'
        for field in re.findall(r"^    (?:\S.*[ *]|\} )(\w+)(?:\[\d*\])*;", content, flags=re.MULTILINE):
            compared = ", ".join(f"__builtin_offsetof(struct {name}, {field})" for name in (ours, theirs))
            body += f'SHOW("{theirs}.{field}", {compared})\n'
    found = run(tmp_path, body)
    assert len([name for name in found if "." not in name]) > 20
    assert len(found) > 150
    assert different(found) == {}


def test_item_numbers(tmp_path: Path) -> None:
    """
    The numbers of `pybtrfs.items`, which our headers lack, are the kernel's.
    """
    numbers = {name: value for name, value in vars(items).items() if name.isupper() and isinstance(value, int)}
    body = ""
    for name, value in numbers.items():
        theirs = f"BTRFS_{name}"
        if name.startswith("FILE_EXTENT_"):  # an enum
            body += f'SHOW("{name}", {value}ULL, {theirs})\n'
        else:
            body += f'#ifdef {theirs}\nSHOW("{name}", {value}ULL, {theirs})\n#endif\n'
    found = run(tmp_path, body)
    assert found.keys() == numbers.keys()
    assert different(found) == {}


@pytest.mark.parametrize("flags", [[], sanitized.FLAGS.split()], ids=["plain", "sanitized"])
def test_no_warnings(flags: list[str], tmp_path: Path) -> None:
    """
    The functions compile without a warning, as the module is built and with sanitizers.
    """
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wmissing-prototypes"]
    command = ["cc", "-std=gnu11", "-O2", "-D_GNU_SOURCE", *warnings, *flags, "-c", INCLUDE / "btrfs.c"]
    subprocess.run([*command, "-o", tmp_path / "btrfs.o"], check=True)


def test_stub() -> None:
    """
    The stub declares exactly the functions of the header, with the same parameters.
    """
    stub = ast.parse((INCLUDE / "_btrfs.pyi").read_text())
    functions = {
        node.name: [parameter.arg for parameter in node.args.posonlyargs[1:]]
        for node in ast.walk(stub)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("pybtrfs_")
    }
    assert functions == {name: re.findall(r"(\w+)(?:,|$)", parameters) for name, parameters in PROTOTYPES}


def test_exported_symbols() -> None:
    """
    The module has every function of the header, and exports none to other libraries.
    """
    library = ctypes.CDLL(_btrfs.__file__)
    assert hasattr(library, "PyInit__btrfs") or hasattr(library, "_cffi_pypyinit__btrfs")
    for name, _ in PROTOTYPES:
        assert hasattr(_btrfs.lib, name)
        assert not hasattr(library, name)


def test_it_stands_alone(tmp_path: Path) -> None:
    """
    The headers compile without the kernel's btrfs header, with all warnings on.
    """
    source = tmp_path / "alone.c"
    source.write_text('#include "btrfs.h"\n')
    command = ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-H", f"-I{INCLUDE}", source]
    included = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert "linux/ioctl.h" in included
    assert "linux/btrfs" not in included


def test_a_wrong_number_is_found(tmp_path: Path) -> None:
    """
    The comparison can fail.
    """
    found = run(tmp_path, 'SHOW("BTRFS_IOC_SYNC", PYBTRFS_IOC_RESIZE, BTRFS_IOC_SYNC)\n')
    assert different(found).keys() == {"BTRFS_IOC_SYNC"}


def test_other_pybtrfs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A compiled module of another version than the package is an ImportError that names the probable cause.
    """
    import runpy

    monkeypatch.setattr("pybtrfs._version.__version__", "999.0")
    with pytest.raises(ImportError, match="Another distribution named pybtrfs"):
        runpy.run_path(str(INCLUDE / "__init__.py"))
