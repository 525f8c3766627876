"""
libnghttp2: the C code that calls it, against its own header and its versions.
"""

import ast
import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from snapshotter.errors import UnavailableError
from snapshotter.transport import _http2, library
from tests import sanitized
from tests.snapshotter.transport.debian import unpacked

ROOT = Path(__file__).parents[3]
INCLUDE = ROOT / "src/snapshotter/transport"
HEADER = (INCLUDE / "http2.h").read_text()
OURS = (INCLUDE / "nghttp2.h").read_text()
PROTOTYPES = re.findall(r"^[a-z](?:[\w ]+ \**)(\w+)\((.*?)\);", HEADER, flags=re.MULTILINE | re.DOTALL)
STRUCTS = re.findall(r"^typedef (?:struct|union)(?: \w+)? \{\n(.*?)^\} (\w+);", OURS, flags=re.MULTILINE | re.DOTALL)
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wmissing-prototypes"]
SUITES = ["bookworm", "sid"]


def headers(suite: str) -> Path:
    return unpacked(suite, "libnghttp2-dev") / "usr/include"


@pytest.mark.parametrize("flags", [[], sanitized.FLAGS.split()], ids=["plain", "sanitized"])
def test_no_warnings(flags: list[str], tmp_path: Path) -> None:
    """
    The functions compile without a warning, as the module is built and with sanitizers.
    """
    command = ["cc", "-std=gnu11", "-O2", "-D_GNU_SOURCE", *WARNINGS, *flags, "-c", INCLUDE / "http2.c"]
    subprocess.run([*command, "-o", tmp_path / "http2.o"], check=True)


@pytest.mark.parametrize("suite", SUITES)
def test_types(suite: str, tmp_path: Path) -> None:
    """
    No function has another type than in the library's own header, with which the C code compiles as well.
    """
    source = tmp_path / "compare.c"
    source.write_text(
        '#include <nghttp2/nghttp2.h>\n#include "http2.c"\n'
        "#define DECLARE(result, name, ...) result nghttp2_##name(__VA_ARGS__);\n"
        "NGHTTP2_REQUIRED(DECLARE) NGHTTP2_OPTIONAL(DECLARE)\n"
    )
    command = ["cc", "-std=gnu11", "-D_GNU_SOURCE", *WARNINGS, f"-I{INCLUDE}", "-isystem", headers(suite)]
    subprocess.run([*command, "-fsyntax-only", source], check=True)


def layouts(tmp_path: Path, include: str) -> str:
    """
    Return the numbers and layouts that a C program with *include* prints.
    """
    numbers = re.findall(r"^#define (NGHTTP2_\w+) [\d(]", OURS, flags=re.MULTILINE)
    assert len(numbers) == 20
    lines = [f'printf("{name} %lld\\n", (long long)({name}));' for name in numbers]
    for body, name in re.findall(
        r"^typedef (?:struct|union)(?: \w+)? \{\n(.*?)^\} (\w+);", OURS, re.MULTILINE | re.DOTALL
    ):
        lines += [
            f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));'
            for field in re.findall(r"(\w+);", body)
            if (name, field) != ("nghttp2_frame", "goaway")
        ]
        if name not in ("nghttp2_frame", "nghttp2_goaway"):
            lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
    source = tmp_path / "layouts.c"
    source.write_text(
        f"#include <stdio.h>\n#include <stddef.h>\n{include}int main(void)\n{{\n{''.join(lines)}return 0;\n}}\n"
    )
    program = tmp_path / "layouts"
    command = ["cc", "-std=gnu11", f"-I{INCLUDE}", "-isystem", headers("sid"), "-o", program, source]
    subprocess.run(command, check=True)
    return subprocess.check_output([program], text=True)


def test_layouts(tmp_path: Path) -> None:
    """
    Every number and struct is the library's.
    """
    ours = layouts(tmp_path, '#include "nghttp2.h"\n')
    theirs = layouts(tmp_path, "#include <nghttp2/nghttp2.h>\n")
    assert ours == theirs
    assert len(ours.splitlines()) > 45


def test_stub() -> None:
    """
    The stub declares exactly the functions of the header, with the same parameters.
    """
    stub = ast.parse((INCLUDE / "_http2.pyi").read_text())
    functions = {
        node.name: [parameter.arg for parameter in node.args.posonlyargs[1:]]
        for node in ast.walk(stub)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("http2_")
    }
    assert functions == {name: re.findall(r"(\w+)(?:,|$)", parameters) for name, parameters in PROTOTYPES}
    assert len(functions) == 12


def test_exported_symbols() -> None:
    """
    The module has every function of the header, exports none to other libraries, and needs no library to be loaded.
    """
    module = ctypes.CDLL(_http2.__file__)
    for name, _ in PROTOTYPES:
        assert hasattr(_http2.lib, name)
        assert not hasattr(module, name)
    needed = subprocess.check_output(["objdump", "-p", _http2.__file__], text=True)
    assert "NEEDED" in needed
    assert "nghttp2" not in needed


def test_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The library is loaded once. A library that is missing, or lacks a function, is an error with the package's name.
    """
    assert library.load() is library.load()
    for name, problem in (("libnone.so.1", "is missing"), ("libc.so.6", "lacks nghttp2_session_callbacks_new")):
        monkeypatch.setattr(library, "SONAME", name)
        with pytest.raises(UnavailableError, match=f"{name} .*{problem}.*: install libnghttp2-14 .Debian"):
            library.load.__wrapped__()


def test_without_optional_functions() -> None:
    """
    A library without the optional functions serves as well.
    """
    program = """
from snapshotter.transport import library
from snapshotter.transport.library import ffi, lib

library.load()
names = []
while name := lib.http2_function(len(names)):
    names.append(name)
for index in range(lib.HTTP2_REQUIRED_FUNCTIONS, len(names)):
    lib.http2_bind(index, ffi.NULL)
import pytest, sys
FILE = "tests/snapshotter/transport/test_http2.py"
options = ["-q", "-p", "no:cacheprovider", "--deselect", f"{FILE}::test_a_small_answer_passes_a_large_one"]
sys.exit(pytest.main([*options, FILE]))
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_newer_version() -> None:
    """
    The transport's tests pass with Debian's newest libnghttp2.
    """
    directories = {path.parent for path in unpacked("sid", "libnghttp2-14").rglob(library.SONAME)}
    [directory] = directories
    environment = os.environ | {"LD_LIBRARY_PATH": str(directory)}
    tests = ["tests/snapshotter/transport", "tests/snapshotter/daemon/test_rpc.py"]
    without = "not newer_version and not optional and not can_fail and not garbage"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", without, *tests]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    which = (
        "import _cffi_backend as c; kept = c.load_library('libnghttp2.so.14', 0); print(open('/proc/self/maps').read())"
    )
    assert str(directory) in subprocess.check_output([sys.executable, "-c", which], env=environment, text=True)
