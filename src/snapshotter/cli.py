"""
The command ``snapshotter``.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, NoReturn

from pybtrfs._version import __version__
from snapshotter import config, display
from snapshotter.contract import Snapshotter
from snapshotter.errors import (
    DataLossError,
    Error,
    InvalidArgumentError,
    NotFoundError,
    StoreHeldError,
    UnavailableError,
)
from snapshotter.snapshot import Info, Mount

DONE, FAILED, USAGE, HELD, NOT_FOUND, INCONSISTENT, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

_CODES = (
    (InvalidArgumentError, USAGE),
    (StoreHeldError, HELD),
    (NotFoundError, NOT_FOUND),
    (DataLossError, INCONSISTENT),
    (Error, FAILED),
)
PING_SECONDS = 5.0
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command with *argv*, by default the process's arguments, and return its exit code.

    0 done, 1 failed, 2 usage or configuration, 3 store held by another, 4 not found, 5 inconsistent, 130 interrupted.
    Only ``--help`` and ``--version`` raise SystemExit.
    """
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        arguments = _parser().parse_args(argv)
        code: int | None = arguments.run(arguments)
        if sys.stdout:
            sys.stdout.flush()
        return code or DONE
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Who read has seen enough. Python flushes once more at its end.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return FAILED
    except Error as error:
        return _report(error)
    except OSError as error:
        place = f": {error.filename!r}" if error.filename is not None else ""
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        return _complain(f"{error.strerror or error}{place}{notes}", FAILED)


def _report(error: Error) -> int:
    return _complain(str(error), next(code for kind, code in _CODES if isinstance(error, kind)))


def _complain(text: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print("snapshotter:", display.printable(text), file=sys.stderr)
    return code


# -- arguments


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise InvalidArgumentError(f"{message} (see `{self.prog} --help`)")


_EXAMPLES = """\
examples:
  export SNAPSHOTTER_ROOT=/var/lib/snapshots
  snapshotter init                           a store, on a btrfs
  snapshotter init --image 20G               or in an image file, anywhere
  snapshotter prepare build                  an empty snapshot, and how to mount it
  snapshotter mounts build /mnt | sh
  snapshotter commit base build              freeze it
  snapshotter prepare web base               a writable copy
  snapshotter fork web web-2                 and a copy of that, while it runs
  snapshotter tree
  snapshotter rm web web-2

exit codes:
  0 done, 1 failed, 2 usage or configuration, 3 store held by another, 4 not found, 5 inconsistent, 130 interrupted
"""


def _parser() -> argparse.ArgumentParser:
    anywhere = _Parser(add_help=False)
    anywhere.add_argument(
        "--root", metavar="DIR", default=argparse.SUPPRESS, help="the store; by default $SNAPSHOTTER_ROOT"
    )
    parser = _Parser(
        prog="snapshotter",
        description="Keep filesystem snapshots by containerd's contract, on btrfs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[anywhere],
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str,
        run: Any,
        text: str,
        *options: str,
        example: str = "",
        parents: Sequence[_Parser] = (),
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example: {example}" if example else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[anywhere, *parents],
        )
        added.set_defaults(run=run)
        if "labels" in options:
            added.add_argument(
                "--label", metavar="KEY=VALUE", type=_label, action="append", default=[], help="may be repeated"
            )
        if "json" in options:
            added.add_argument("--json", action="store_true", help="print JSON, of the shape in docs/cli.md")
        if "bytes" in options:
            added.add_argument("--bytes", action="store_true", help="print sizes in bytes")
        return added

    init = command(
        "init",
        _init,
        "make a store, on a btrfs or in an image file",
        example="snapshotter init --root /var/lib/snapshots --image 20G",
    )
    init.add_argument("--image", metavar="SIZE", type=_size, help="make a btrfs of this size in a file, as in 20G")
    init.add_argument("--image-file", metavar="FILE", help="that file; by default the root with .img behind it")
    init.add_argument("--sparse", action="store_true", help="do not reserve its space: a full disk loses data then")
    init.add_argument("--adopt", action="store_true", help="make a store of one that was moved here")

    prepare = command(
        "prepare",
        _prepare,
        "make an active snapshot, and print how to mount it",
        "labels",
        "json",
        example="snapshotter prepare web base --label owner=me",
    )
    view = command("view", _view, "make a read-only view, and print how to mount it", "labels", "json")
    for parser_of_new in (prepare, view):
        parser_of_new.add_argument("key", metavar="KEY")
        parser_of_new.add_argument("parent", metavar="PARENT", nargs="?", default="", help="committed; none for empty")

    commit = command("commit", _commit, "freeze an active snapshot under a name", "labels")
    commit.add_argument("name", metavar="NAME")
    commit.add_argument("key", metavar="KEY")

    fork = command("fork", _fork, "copy an active snapshot while it runs, and print how to mount the copy", "json")
    fork.add_argument("key", metavar="KEY")
    fork.add_argument("new", metavar="NEW")

    mounts = command(
        "mounts",
        _mounts,
        "print how to mount an active snapshot or a view",
        "json",
        example="snapshotter mounts web /mnt | sh",
    )
    mounts.add_argument("key", metavar="KEY")
    mounts.add_argument("target", metavar="TARGET", nargs="?", default="TARGET", help="where")

    ls = command(
        "ls", _ls, "list snapshots", "json", example="snapshotter ls 'kind==active,labels.owner==me' 'parent==base'"
    )
    ls.add_argument("filters", metavar="FILTER", nargs="*", help="containerd's filters; one of them has to match")

    command("tree", _tree, "show snapshots below their parents, with sizes", "json", "bytes")
    usage = command("usage", _usage, "measure what snapshots add to their parents", "json", "bytes")
    usage.add_argument("keys", metavar="KEY", nargs="+")

    rm = command("rm", _rm, "remove snapshots, and wait for their space")
    rm.add_argument("keys", metavar="KEY", nargs="+")

    command("cleanup", _cleanup, "destroy what is left of removed snapshots, and wait for their space")
    command("doctor", _doctor, "look for what is wrong with a store, and say how to mend it; 5 if something is", "json")
    place = _Parser(add_help=False)
    place.add_argument("--config", metavar="FILE", help="the daemon's configuration; by default $SNAPSHOTTER_CONFIG")
    place.add_argument("--address", metavar="SOCKET", help="the daemon's socket")
    settings = _Parser(add_help=False, parents=[place])
    for name, setting in config.SETTINGS.items():
        if name not in ("root", "address"):
            settings.add_argument(config.flag(name), metavar="VALUE", dest=name, help=setting.metadata["expected"])
    command("serve", _serve, "serve a store to containerd; make it where there is none", parents=[settings])
    configuration = command("config", _config, "print or check the configuration of serve", parents=[settings])
    configuration.add_argument(
        "what",
        choices=("default", "dump", "check"),
        help="a file with the defaults; what is in force, and where from; or nothing, if it is right",
    )
    command("ping", _ping, "ask whether a daemon serves its store", parents=[place])
    setup = command("setup", None, "print what containerd and systemd have to know of the daemon")
    targets = setup.add_subparsers(metavar="WHAT", required=True)
    about = "print or write a file for containerd's configuration, or check what is in force"
    to_containerd = targets.add_parser("containerd", help=about, description=about, parents=[anywhere, place])
    to_containerd.set_defaults(run=_setup_containerd)
    to_containerd.add_argument("--name", default="btrfs-snapshotter", help="what containerd calls it (%(default)s)")
    to_containerd.add_argument("--cri", action="store_true", help="make it the snapshotter of Kubernetes")
    to_containerd.add_argument("--containerd", metavar="PATH", default="containerd", help="the program to ask")
    to_containerd.add_argument(
        "--containerd-config", metavar="FILE", default="/etc/containerd/config.toml", help="by default %(default)s"
    )
    to_containerd.add_argument(
        "--config-version", type=int, choices=(2, 3, 4), help="of containerd's configuration, instead of asking it"
    )
    to_containerd.add_argument("--write", metavar="FILE", help="write the file instead of printing it")
    to_containerd.add_argument(
        "--check",
        metavar="FILE",
        nargs="?",
        const="",
        help="name what a `containerd config dump` lacks, a FILE or - or of the program; 1 if anything",
    )
    about = "print or write the units of the daemon"
    to_systemd = targets.add_parser("systemd", help=about, description=about, parents=[anywhere, place])
    to_systemd.set_defaults(run=_setup_systemd)
    to_systemd.add_argument("--write", metavar="DIR", help="write them there, instead of printing them")
    command("demo", _demo, "show it all on a btrfs of its own, which is gone afterwards; needs root")
    return parser


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(iB)?", text, re.IGNORECASE | re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 512M or 20G")
    return int(match[1]) << _UNITS[match[2].upper()]


def _root(arguments: argparse.Namespace) -> str:
    root: str = getattr(arguments, "root", "") or os.environ.get("SNAPSHOTTER_ROOT", "")
    if not root:
        raise InvalidArgumentError("no store is given: use --root DIR, or set SNAPSHOTTER_ROOT")
    if "\0" in root:
        raise InvalidArgumentError(f"{root!r} is not a path")
    return root


def _reading(arguments: argparse.Namespace) -> Snapshotter:
    return Snapshotter(_root(arguments), read_only=True)


def _changing(arguments: argparse.Namespace) -> Snapshotter:
    return Snapshotter(_root(arguments), client=None)


# -- output


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _described(info: Info) -> dict[str, Any]:
    return {
        "kind": str(info.kind),
        "name": info.name,
        "parent": info.parent,
        "created": info.created.isoformat(timespec="microseconds"),
        "updated": info.updated.isoformat(timespec="microseconds"),
        "labels": dict(info.labels),
    }


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}Z"


def _print_mounts(arguments: argparse.Namespace, mounts: Iterable[Mount]) -> None:
    if arguments.json:
        _print_json([asdict(mount) for mount in mounts])
        return
    for mount in mounts:
        print(mount_command(mount, getattr(arguments, "target", "TARGET")))


def mount_command(mount: Mount, target: str) -> str:
    """
    The mount(8) command line that makes *mount* at *target*.
    """
    kind = [] if mount.type == "bind" else ["-t", mount.type]
    options = ["-o", ",".join(mount.options)] if mount.options else []
    point = os.path.join(target, mount.target) if mount.target else target
    return shlex.join(["mount", *kind, *options, mount.source, point])


# -- commands


def _init(arguments: argparse.Namespace) -> None:
    root = _root(arguments)
    if arguments.adopt:
        if arguments.image or arguments.image_file or arguments.sparse:
            raise InvalidArgumentError("--adopt takes the store as it is, without an image")
        Snapshotter.adopt(root, client=None).close()
        print(f"adopted {display.printable(root)}")
    elif arguments.image is not None:
        from snapshotter import image_store

        file = arguments.image_file or os.path.realpath(root) + ".img"
        image_store.create(root, file, arguments.image, sparse=arguments.sparse)
        print(image_store.mount_unit(root, file), end="")
    elif arguments.image_file or arguments.sparse:
        raise InvalidArgumentError("--image-file and --sparse need --image SIZE")
    else:
        Snapshotter.create(root).close()
        print(f"made a store in {display.printable(root)}")


def _prepare(arguments: argparse.Namespace) -> None:
    with _changing(arguments) as store:
        _print_mounts(arguments, store.prepare(arguments.key, arguments.parent, dict(arguments.label)))


def _view(arguments: argparse.Namespace) -> None:
    with _changing(arguments) as store:
        _print_mounts(arguments, store.view(arguments.key, arguments.parent, dict(arguments.label)))


def _commit(arguments: argparse.Namespace) -> None:
    with _changing(arguments) as store:
        store.commit(arguments.name, arguments.key, dict(arguments.label))


def _fork(arguments: argparse.Namespace) -> None:
    with _changing(arguments) as store:
        _print_mounts(arguments, store.fork(arguments.key, arguments.new))


def _mounts(arguments: argparse.Namespace) -> None:
    with _reading(arguments) as store:
        _print_mounts(arguments, store.mounts(arguments.key))


def _ls(arguments: argparse.Namespace) -> None:
    with _reading(arguments) as store:
        infos = sorted(store.walk(*arguments.filters), key=lambda info: info.name)
    if arguments.json:
        _print_json([_described(info) for info in infos])
    else:
        rows = [(info.name, str(info.kind), info.parent, _time(info.created)) for info in infos]
        display.table(("KEY", "KIND", "PARENT", "CREATED"), rows)


def _tree(arguments: argparse.Namespace) -> None:
    found = []
    with _reading(arguments) as store:
        for depth, lines, info in display.family(store.walk()):
            try:
                usage = store.usage(info.name)
            except DataLossError:
                usage = None  # doctor says why
            found.append((depth, lines, info, usage))
    if arguments.json:
        _print_json(
            [
                _described(info) | {"depth": depth, "size": usage and usage.size, "inodes": usage and usage.inodes}
                for depth, _, info, usage in found
            ]
        )
    else:
        display.tree(((lines, info, usage) for _, lines, info, usage in found), in_bytes=arguments.bytes)


def _usage(arguments: argparse.Namespace) -> None:
    with _reading(arguments) as store:
        usages = [(key, store.usage(key)) for key in arguments.keys]
    if arguments.json:
        _print_json([{"key": key, "size": usage.size, "inodes": usage.inodes} for key, usage in usages])
    else:
        amount = str if arguments.bytes else display.size
        rows = [(key, amount(usage.size), str(usage.inodes)) for key, usage in usages]
        display.table(("KEY", "SIZE", "INODES"), rows)


def _rm(arguments: argparse.Namespace) -> int:
    code = DONE
    with _changing(arguments) as store:
        for key in arguments.keys:
            try:
                store.remove(key)
            except Error as error:
                failure = _report(error)
                code = code or failure
        store.cleanup()
    return code


def _cleanup(arguments: argparse.Namespace) -> None:
    with _changing(arguments) as store:
        store.cleanup()


def _doctor(arguments: argparse.Namespace) -> int:
    from snapshotter import doctor

    problems = doctor.examine(_root(arguments))
    if arguments.json:
        _print_json([asdict(problem) for problem in problems])
    elif not problems:
        print("nothing is wrong")
    for problem in problems if not arguments.json else ():
        print(display.printable(f"{problem.subject}: {problem.what}"))
        print(display.printable(f"  cure: {problem.cure}"))
    return INCONSISTENT if problems else DONE


def _settings(arguments: argparse.Namespace) -> config.Loaded:
    flags = {name: text for name in config.SETTINGS if (text := getattr(arguments, name, None)) is not None}
    return config.load(arguments.config or os.environ.get("SNAPSHOTTER_CONFIG"), os.environ, flags)


def _serve(arguments: argparse.Namespace) -> None:
    loaded = _settings(arguments).config
    from snapshotter import daemon, events
    from snapshotter.systemd import Systemd

    events.listen(sys.stderr, loaded.log_format, loaded.log_level)
    daemon.serve(loaded, Systemd(os.environ))


def _config(arguments: argparse.Namespace) -> None:
    if arguments.what == "default":
        print(config.default(), end="")
        return
    loaded = _settings(arguments)
    if arguments.what == "dump":
        print(config.dump(loaded), end="")


def _ping(arguments: argparse.Namespace) -> None:
    address = _settings(arguments).config.address
    from snapshotter.client import Client

    with Client(address, timeout=PING_SECONDS) as client:
        if not client.serving():
            raise UnavailableError(f"the daemon at {address!r} is opening its store")
    print(f"{display.printable(address)} serves")


def _setup_containerd(arguments: argparse.Namespace) -> int:
    from snapshotter import containerd

    settings = _settings(arguments).config
    plugin = containerd.Plugin(arguments.name, settings.root, settings.address, arguments.cri)
    if arguments.check is not None:
        lacks = containerd.missing(plugin, _dump(arguments))
        for line in lacks or ["nothing is missing"]:
            print(display.printable(line))
        return FAILED if lacks else DONE
    main_file = containerd.read_main(arguments.containerd_config)
    release = None if arguments.config_version else containerd.installed(arguments.containerd)
    version = release.config if release else arguments.config_version
    path = os.path.abspath(arguments.write or os.path.join(containerd.DROP_INS, f"{plugin.name}.toml"))
    text = containerd.drop_in(plugin, version, main_file)
    if arguments.write:
        _write(path, text)
    else:
        print(text, end="")
    _advise(f"for {path}; then:", containerd.advice(plugin, version, release, main_file, path))
    return DONE


def _dump(arguments: argparse.Namespace) -> str:
    from snapshotter import containerd

    if arguments.check == "":
        return containerd.dumped(arguments.containerd, arguments.containerd_config)
    if arguments.check == "-":
        return sys.stdin.read()
    with open(arguments.check, encoding="utf-8", errors="replace") as file:
        return file.read()


def _setup_systemd(arguments: argparse.Namespace) -> None:
    from snapshotter import unit_files

    settings = _settings(arguments).config
    script = os.path.join(os.path.dirname(sys.executable), "snapshotter")
    command = [script] if os.access(script, os.X_OK) else [sys.executable, "-m", "snapshotter"]
    directory = arguments.write or "/etc/systemd/system"
    for name in unit_files.NAMES:
        text = unit_files.text(name, settings.root, settings.address, command)
        path = os.path.join(directory, name)
        if arguments.write:
            _write(path, text)
        else:
            print(f"# {path}\n{text}")
    steps = [f"systemctl daemon-reload && systemctl enable --now {' '.join(reversed(unit_files.NAMES))}"]
    if not os.path.exists(settings.root):
        steps.insert(0, f"before that, make a store: snapshotter init --root {shlex.quote(settings.root)}")
    if command[0].startswith(("/home/", "/root/", "/tmp/", "/var/tmp/")):
        steps.insert(0, f"install this package elsewhere: the daemon of the unit sees nothing of {command[0]}")
    _advise(f"for {directory}; then:", steps)


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _advise(heading: str, steps: Iterable[str]) -> None:
    print(heading, file=sys.stderr)
    for step in steps:
        print("-", step.replace("\n", "\n  "), file=sys.stderr)


def _demo(arguments: argparse.Namespace) -> None:
    from snapshotter import demo

    demo.run()
