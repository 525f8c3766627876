"""
Run the tests of pybtrfs and of the transport on every Python: ``python -m tools.runtimes [COMMAND...]``.

Every CPython installs the same wheel, without a compiler. PyPy and free-threaded builds cannot use it, so they build
from the source distribution; a CPython with old kernel headers does as well. The table at the end has a line for each
Python. The command fails if a test fails, or if a Python that Debian has is not available.
"""

import glob
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools import debian
from tools.cache import cached
from tools.debian import BIN, TRIPLET, UnavailableError, run
from tools.results import PYTEST, ROOT, TIMEOUT, Row, conclude, unavailable

# The tests of the transport, and the libraries that they need.
TRANSPORT = [
    "tests/snapshotter/transport/test_http2.py",
    "tests/snapshotter/transport/test_channel.py",
    "tests/snapshotter/daemon/test_rpc.py",
]
TRANSPORT_NEEDS = ["h2", "protobuf"]


@dataclass(frozen=True)
class Interpreter:
    """
    A Python to test.

    Attributes:
        command: Its name in PATH, and in pyenv's versions.
        suite: The Debian suite that has it, or an empty string.
        packages: Its packages in *suite*.
        wheel: Whether it installs the wheel, and does not build from the source distribution.
        headers: The Debian suite of the kernel headers to build with.
    """

    name: str
    command: str
    suite: str = ""
    packages: tuple[str, ...] = ()
    wheel: bool = True
    headers: str = ""


WANTED = [
    Interpreter("CPython 3.11", "python3.11", "bookworm", ("python3.11",)),
    Interpreter("CPython 3.11", "python3.11", "bookworm", ("python3.11",), wheel=False, headers="bullseye"),
    Interpreter("CPython 3.12", "python3.12"),
    Interpreter("CPython 3.13", "python3.13", "trixie", ("python3.13",)),
    Interpreter("CPython 3.14", "python3.14", "sid", ("python3.14",)),
    Interpreter("CPython 3.15", "python3.15", "sid", ("python3.15",)),
    Interpreter("CPython 3.14, free-threaded", "python3.14t", wheel=False),
    Interpreter("CPython 3.15, free-threaded", "python3.15t", wheel=False),
    Interpreter("PyPy 3.11", "pypy3.11", "sid", ("pypy3", "pypy3-dev"), wheel=False),
]


def find(interpreter: Interpreter) -> Path | None:
    """
    Return the interpreter from pyenv, PATH or Debian, in that order, or None if none has it.

    Raises:
        UnavailableError: Debian has it, but the download fails.
    """
    pyenv = os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv"
    for candidate in [*glob.glob(f"{pyenv}/versions/*/bin/{interpreter.command}"), shutil.which(interpreter.command)]:
        # Run it, because pyenv puts a script in PATH that fails unless the version is chosen.
        if candidate and subprocess.run([candidate, "-c", "import venv"], capture_output=True).returncode == 0:
            return Path(candidate)
    if not interpreter.suite or shutil.which("apt-get") is None:
        return None
    command = f"usr/bin/{interpreter.command}"
    return debian.programs(interpreter.suite, interpreter.packages, (command,)) / command


def headers(suite: str) -> list[str]:
    """
    Return compiler options that put the kernel headers of *suite* before this machine's.
    """

    def build(tree: Path) -> None:
        with debian.Suite(suite) as opened:
            opened.unpack("linux-libc-dev", tree=tree, dependencies=False)

    include = cached(f"headers-{suite}", build) / "usr/include"
    return ["-isystem", str(include), "-isystem", str(include / TRIPLET)]


def headers_version(options: list[str]) -> str:
    """
    Return the version of the kernel headers that a compiler with *options* reads.
    """
    source = "#include <linux/version.h>\nLINUX_VERSION_CODE"
    command = ["cc", "-E", "-P", *options, "-"]
    code = int(subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout)
    return f"{code >> 16}.{code >> 8 & 0xFF}"


class Distributions:
    """
    The wheel and the source distribution, built once.
    """

    def __init__(self, directory: Path) -> None:
        run(BIN / "python", "-m", "build", "--outdir", directory, ROOT)
        [self.wheel] = directory.glob("*.whl")
        [self.sdist] = directory.glob("*.tar.gz")

    def install(self, interpreter: Interpreter, python: Path, venv: Path) -> None:
        """
        Make *venv* with the distribution and the test tools for *interpreter*.
        """
        run(python, "-m", "venv", "--without-pip", venv)
        pip = BIN / "python", "-m", "pip", "--python", venv / "bin/python", "install"
        run(*pip, "--only-binary=:all:", "pytest", "hypothesis", *TRANSPORT_NEEDS)
        if interpreter.wheel:
            run(*pip, "--only-binary=:all:", self.wheel)
        else:
            flags = headers(interpreter.headers) if interpreter.headers else []
            # pip's cache may have a wheel that was built with other headers.
            run(*pip, "--no-cache-dir", self.sdist, env={"CFLAGS": shlex.join(flags)})


def test(interpreter: Interpreter, distributions: Distributions, directory: Path) -> Row:
    """
    Run the tests of pybtrfs and of the transport, and the demo.
    """
    python = find(interpreter)
    if python is None:
        return Row(interpreter.name, note="not available: not in PATH, pyenv or Debian")
    venv = directory / "venv"
    distributions.install(interpreter, python, venv)
    version = run(venv / "bin/python", "-c", "import sys; print(*sys.implementation.version[:3], sep='.')").strip()
    [metadata] = venv.glob("lib/*/site-packages/btrfs_snapshotter-*.dist-info/WHEEL")
    wheel = metadata.read_text().partition("Tag: ")[2].split()[0]
    row = Row(interpreter.name, version, wheel)
    report = directory / "report.xml"
    command: list[str | Path] = [venv / "bin/python", *PYTEST, *TRANSPORT, f"--junit-xml={report}"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    if ran.returncode:
        print(ran.stdout + ran.stderr)
    row.count(report.read_text() if report.exists() else "")
    demo = subprocess.run([venv / "bin/snapshotter", "demo"], capture_output=True, text=True)
    if demo.returncode:
        row.failed += 1
        print(demo.stdout + demo.stderr)
    if interpreter.headers:
        row.note += f"built with the headers of Linux {headers_version(headers(interpreter.headers))}"
    return row


def main(commands: list[str]) -> None:
    wanted = [interpreter for interpreter in WANTED if interpreter.command in commands or not commands]
    with tempfile.TemporaryDirectory() as directory:
        distributions = Distributions(Path(directory))
        rows = []
        for interpreter in wanted:
            with tempfile.TemporaryDirectory() as own:
                try:
                    row = test(interpreter, distributions, Path(own))
                except (UnavailableError, subprocess.SubprocessError) as error:
                    row = unavailable(interpreter.name, error)
            rows.append(row)
            print(row, flush=True)
    conclude("Python", "wheel", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
