"""
``snapshotter commit``.
"""

import argparse

from snapshotter.cli import arguments


def _commit(parsed: argparse.Namespace) -> None:
    with arguments.making(parsed) as store:
        store.commit(parsed.name, parsed.key, dict(parsed.label))
