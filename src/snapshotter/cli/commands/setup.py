"""
``snapshotter setup``.
"""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from snapshotter.cli import arguments
from snapshotter.cli.codes import DONE, FAILED
from snapshotter.daemon.config import FILE
from snapshotter.errors import AlreadyExistsError, Error
from snapshotter.setup import containerd, docker, files, rancher, rootless, unit_files
from snapshotter.text import printable

if TYPE_CHECKING:
    from snapshotter.daemon.config import Config

_MAIN = "/etc/containerd/config.toml"

_LINES = {
    "containerd": "print or write containerd's configuration file for the daemon, or check containerd's configuration",
    "docker": "print or write Docker Engine's configuration for the daemon, and containerd's, or check both",
    "systemd": "print or write the systemd units of the daemon",
}


def add(commands: arguments.Commands) -> None:
    place = arguments.daemon_place()
    targets = arguments.Commands(commands.add("setup", None), _LINES, "PROGRAM")
    of_containerd = _of_containerd()
    to_containerd = targets.add(
        "containerd",
        _setup_containerd,
        place,
        of_containerd,
        example="snapshotter setup containerd --cri",
    )
    to_containerd.add_argument(
        "--for",
        dest="distribution",
        choices=sorted(rancher.DISTRIBUTIONS),
        help="the containerd of this distribution, whose configuration is its own",
    )
    _add_rootless(to_containerd)
    to_containerd.add_argument("--cri", action="store_true", help="make it the snapshotter of Kubernetes, too")
    to_containerd.add_argument(
        "--runtime-class", metavar="HANDLER", default="", help="make it the snapshotter of this RuntimeClass"
    )
    to_containerd.add_argument(
        "--config-version",
        type=int,
        choices=(2, 3, 4),
        help="version of the configuration file, instead of running containerd",
    )
    to_containerd.add_argument(
        "--write",
        metavar="FILE",
        nargs="?",
        const="",
        help="write this file (default: the usual one, which the main file then imports)",
    )
    to_containerd.add_argument(
        "--check",
        metavar="FILE",
        nargs="?",
        const="",
        help="list settings missing from `containerd config dump` (or its output in FILE or -), and whether nothing "
        "answers at the address; 1 if any",
    )
    to_docker = targets.add(
        "docker",
        _setup_docker,
        place,
        of_containerd,
        example="snapshotter setup docker --write",
    )
    to_docker.set_defaults(rootless=False)
    to_docker.add_argument(
        "--daemon-json",
        metavar="FILE",
        default=docker.DAEMON_JSON,
        help="Docker's configuration (default: %(default)s)",
    )
    to_docker.add_argument(
        "--docker-socket", metavar="PATH", default=docker.SOCKET, help="the engine's socket (default: %(default)s)"
    )
    to_docker.add_argument(
        "--write", action="store_true", help="write the files, each beside a dated copy, instead of printing them"
    )
    to_docker.add_argument(
        "--check",
        action="store_true",
        help="list missing settings, and whether the engine does not use the snapshotter; 1 if any",
    )
    to_systemd = targets.add(
        "systemd",
        _setup_systemd,
        place,
        example="snapshotter setup systemd --root /var/lib/snapshots",
    )
    _add_rootless(to_systemd)
    to_systemd.add_argument("--write", metavar="DIR", help="write the units to this directory instead of printing them")


def _of_containerd() -> arguments.Parser:
    parser = arguments.Parser(add_help=False)
    parser.add_argument(
        "--name", default="btrfs-snapshotter", help="name of the snapshotter in containerd (default: %(default)s)"
    )
    parser.add_argument(
        "--containerd",
        metavar="PATH",
        default="containerd",
        help="program that tells the version (default: %(default)s)",
    )
    parser.add_argument(
        "--containerd-config",
        metavar="FILE",
        default=_MAIN,
        help="main configuration file (default: %(default)s)",
    )
    return parser


def _add_rootless(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rootless", action="store_true", help="for rootless containerd, with all files in the user's directories"
    )


def _setup_containerd(parsed: argparse.Namespace) -> int:
    distribution = rancher.DISTRIBUTIONS.get(parsed.distribution or "")
    if distribution:
        parsed.containerd, parsed.containerd_config = distribution.containerd, distribution.main
    elif parsed.rootless and parsed.containerd_config == _MAIN:
        parsed.containerd_config = rootless.places(os.environ).main
    plugin = _plugin(parsed, cri=parsed.cri, runtime_class=parsed.runtime_class)
    if parsed.check is not None:
        lacks = containerd.missing(plugin, _dump(parsed))
        if not parsed.check:  # a dump in a file may be of another machine
            lacks += _unanswered(plugin)
        return _print_missing(lacks)
    main = containerd.read_main(os.path.abspath(parsed.containerd_config))
    if distribution:
        path, text = rancher.file_for(plugin, main)
        _print_or_write({parsed.write or path: text}, write=parsed.write is not None)
        steps = rancher.advice(plugin, distribution)
    else:
        release = None if parsed.config_version else containerd.installed(parsed.containerd)
        version = containerd.drop_in_version(release.config if release else parsed.config_version, main)
        path = os.path.abspath(parsed.write or containerd.drop_in_path(plugin, main))
        texts = {path: containerd.drop_in(plugin, version, main)}
        if parsed.write == "":
            texts[main.path] = containerd.importing(main, path, version)
        _print_or_write(texts, write=parsed.write is not None)
        programs = [program for program in containerd.CLIENTS if shutil.which(program)]
        steps = containerd.advice(plugin, version, release, containerd.read_main(main.path), path, programs)
    _advise(f"after writing {path}:", steps)
    return DONE


def _setup_docker(parsed: argparse.Namespace) -> int:
    plugin = _plugin(parsed)
    main = containerd.read_main(os.path.abspath(parsed.containerd_config))
    daemon_json = os.path.abspath(parsed.daemon_json)
    if parsed.check:
        return _print_missing(
            containerd.missing(plugin, containerd.dumped(parsed.containerd, main.path))
            + _unanswered(plugin)
            + docker.missing(daemon_json, plugin.name)
            + docker.engine_problems(parsed.docker_socket, plugin.name)
        )
    version = containerd.drop_in_version(containerd.installed(parsed.containerd).config, main)
    path = containerd.drop_in_path(plugin, main)
    texts = {
        path: containerd.drop_in(plugin, version, main),
        main.path: containerd.importing(main, path, version),
        daemon_json: docker.merged(daemon_json, plugin.name),
    }
    _print_or_write(texts, write=parsed.write)
    _advise(
        "after writing the files:",
        [
            "restart containerd and the engine, which ends containers: systemctl restart containerd docker",
            "check the result: snapshotter setup docker --check",
            "images and containers of the former storage driver are hidden until that driver is back",
        ],
    )
    return DONE


def _settings(parsed: argparse.Namespace) -> "Config":
    """
    Return the settings of the daemon, with the places of its user if it is rootless.
    """
    config, origins = arguments.load_settings(parsed)
    if not parsed.rootless:
        return config
    own = rootless.places(os.environ)
    of_system = "default", FILE
    return replace(
        config,
        root=own.root if origins["root"] in of_system else config.root,
        address=own.address if origins["address"] in of_system else config.address,
    )


def _plugin(parsed: argparse.Namespace, *, cri: bool = False, runtime_class: str = "") -> containerd.Plugin:
    settings = _settings(parsed)
    maps_ids = not parsed.rootless and containerd.kernel_maps_ids(os.uname().release)
    return containerd.Plugin(parsed.name, settings.root, settings.address, cri, maps_ids, runtime_class)


def _print_missing(lines: list[str]) -> int:
    for line in lines or ["nothing is missing"]:
        print(printable(line))
    return FAILED if lines else DONE


def _dump(parsed: argparse.Namespace) -> str:
    if parsed.check == "":
        return containerd.dumped(parsed.containerd, parsed.containerd_config)
    if parsed.check == "-":
        return sys.stdin.read()
    with open(parsed.check, encoding="utf-8", errors="replace") as file:
        return file.read()


def _unanswered(plugin: containerd.Plugin) -> list[str]:
    """
    Return a line if no daemon serves at the address of *plugin*.
    """
    from snapshotter.client import check_serving

    try:
        check_serving(plugin.address)
    except Error as error:
        return [f"proxy_plugins.{plugin.name}.address: {error}; start the daemon"]
    return []


def _setup_systemd(parsed: argparse.Namespace) -> None:
    settings = _settings(parsed)
    script = os.path.join(os.path.dirname(sys.executable), "snapshotter")
    command = [script] if os.access(script, os.X_OK) else [sys.executable, "-m", "snapshotter"]
    usual = rootless.places(os.environ).units if parsed.rootless else "/etc/systemd/system"
    names = (rootless.UNIT,) if parsed.rootless else unit_files.NAMES
    systemctl = "systemctl --user" if parsed.rootless else "systemctl"
    directory = parsed.write or usual
    texts = {
        os.path.join(directory, name): unit_files.text(name, settings.root, settings.address, command) for name in names
    }
    _print_or_write(texts, write=bool(parsed.write))
    steps = [f"{systemctl} daemon-reload && {systemctl} enable --now {' '.join(reversed(names))}"]
    if why := _unmade(settings.root, make=bool(parsed.write)):
        make = f"before that, create the store: snapshotter init --root {shlex.quote(settings.root)}"
        steps[:0] = [make, f"see why it was not made now: {why}"] if parsed.write else [make]
    if not parsed.rootless and command[0].startswith(("/home/", "/root/", "/tmp/", "/var/tmp/")):
        steps.insert(0, f"install this package elsewhere, because the unit hides {command[0]} from the daemon")
    _advise(f"after writing the units to {directory}:", steps)


def _unmade(root: str, *, make: bool) -> str:
    """
    Return the reason why there is no store at *root*; empty if there is one, or if one was made now.
    """
    from snapshotter.contract import Snapshotter

    try:
        (Snapshotter.create(root) if make else Snapshotter(root, read_only=True)).close()
    except AlreadyExistsError:
        return ""
    except Error as error:
        return str(error)
    return ""


def _print_or_write(texts: Mapping[str, str], *, write: bool) -> None:
    """
    Write each file of *texts*, by path, beside a dated copy of its former content, or print all of them.
    """
    for path, text in texts.items():
        if not write:
            heading = f"# {printable(path)}\n" if len(texts) > 1 else ""
            print(f"{heading}{text}", end="\n" if heading else "")
        elif copy := files.write(path, text):
            print(f"{printable(path)} is written; its former content is in {printable(copy)}", file=sys.stderr)


def _advise(heading: str, steps: Iterable[str]) -> None:
    print(heading, file=sys.stderr)
    for step in steps:
        print("-", step.replace("\n", "\n  "), file=sys.stderr)
