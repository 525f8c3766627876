"""
``snapshotter prepare``, ``view`` and ``fork``.
"""

import argparse

from snapshotter.cli import arguments, output


def _prepare(parsed: argparse.Namespace) -> None:
    with arguments.making(parsed) as store:
        output.print_mounts(parsed, store.prepare(parsed.key, parsed.parent, dict(parsed.label)))


def _view(parsed: argparse.Namespace) -> None:
    with arguments.making(parsed) as store:
        output.print_mounts(parsed, store.view(parsed.key, parsed.parent, dict(parsed.label)))


def _fork(parsed: argparse.Namespace) -> None:
    with arguments.making(parsed) as store:
        output.print_mounts(parsed, store.fork(parsed.key, parsed.new))
