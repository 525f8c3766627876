"""
``snapshotter doctor`` and ``purge``.
"""

import argparse
from collections.abc import Iterable, Mapping

from snapshotter.analysis import inventory, space
from snapshotter.cli import arguments, output, protection, waiting
from snapshotter.cli.codes import DONE, INCONSISTENT, complain
from snapshotter.cli.confirmation import agreed
from snapshotter.contract import Snapshotter
from snapshotter.errors import FailedPreconditionError, UnavailableError
from snapshotter.maintenance import doctor, quarantine, repair
from snapshotter.model import Problem
from snapshotter.store.layout import QUARANTINE
from snapshotter.text import printable


def add(commands: arguments.Commands) -> None:
    examine = commands.add("doctor", _doctor, arguments.JSON, example="snapshotter doctor")
    examine.add_argument(
        "--fix",
        action="store_true",
        help="repair the store, and move unusable entries to the quarantine; deletes nothing",
    )
    protection.add_socket(examine)
    purge = commands.add("purge", _purge, arguments.BYTES, example="snapshotter purge --dry-run")
    purge.add_argument("--yes", action="store_true", help="delete without asking")
    purge.add_argument("--dry-run", action="store_true", help="only list the quarantine")
    protection.add_flags(purge)


def _doctor(parsed: argparse.Namespace) -> int:
    root = arguments.root(parsed)
    repairs = []
    unasked: list[str] = []
    if parsed.fix:
        with arguments.exclusive("doctor --fix"):
            repairs = repair.fix(root, keep=lambda client, parents: _keep(parsed, client, parents))
        problems = doctor.examine(root)  # the daemon is stopped
    else:
        problems = doctor.examine(root, lambda store: _of_client(parsed, store, unasked))
    if parsed.json:
        left = [problem._asdict() for problem in problems]
        output.print_json(
            {"repairs": [output.values(each) for each in repairs], "problems": left} if parsed.fix else left
        )
        for reason in unasked:
            complain(f"containerd was not asked: {reason}", DONE)
    else:
        for each in repairs:
            print(printable(f"{each.subject}: {each.what}"))
        for problem in problems:
            print(printable(f"{problem.subject}: {problem.what}"))
            print(printable(f"  cure: {problem.cure}"))
        if not problems:
            print("nothing is wrong")
        for reason in unasked:
            print(printable(f"containerd was not asked: {reason}"))
    return INCONSISTENT if problems else DONE


def _of_client(parsed: argparse.Namespace, store: Snapshotter, unasked: list[str]) -> list[Problem]:
    """
    Return the problems between *store* and its client.

    Args:
        unasked: Gets the reason if containerd has to do with the store and was not asked.
    """
    if store.is_copy:
        return []
    client, keys = store.opened.ownership.client, [info.name for info in store.walk()]
    foreign = protection.is_foreign(client, keys)
    try:
        from snapshotter.maintenance import connection

        addresses = protection.sockets(parsed, client) if foreign else []
    except ModuleNotFoundError as error:
        unasked += [protection.unasked(error)] * foreign
        return []
    except UnavailableError as error:
        unasked.append(str(error))
        addresses = []
    return list(connection.examine(store.root, client, keys, addresses))


def _purge(parsed: argparse.Namespace) -> None:
    with arguments.reading(parsed) as store:
        paths = quarantine.quarantined(store.root)
        for path in paths:
            damage = quarantine.damage(path)
            warning = f": it cannot be read ({damage}): deleting it may turn the filesystem read-only" if damage else ""
            print(printable(path + warning))
        if not paths:
            print("the quarantine is empty")
            return
        taken = inventory.take(store, measured=False)
        orphaned = taken.orphaned
        theirs = [volume for volume in orphaned if volume.path.startswith(f"{QUARANTINE}/")]
        size = output.amount(parsed)(space.of_volumes(store.root, theirs).reclaimable)
        print(f"entries in the quarantine: {len(paths)}; deleting their subvolumes frees {size}")
        if parsed.dry_run or not _is_agreed(parsed, store.opened.ownership.client, store.root, taken.entries):
            return
        quarantine.purge(store, paths)
        waiting.wait(store.root, {subvolid for volume in theirs for subvolid in volume.subvolids})


def _is_agreed(parsed: argparse.Namespace, client: str, root: str, keys: Iterable[str]) -> bool:
    """
    Return whether the operator agrees to the deletion, asked at most once.

    Raises:
        FailedPreconditionError: containerd may need an entry, or cannot be asked.
    """
    if protection.is_foreign(client, keys):
        missing = protection.ask(parsed, lambda: protection.missing(parsed, client, root))
        if missing is None:
            return True
        if missing:
            raise FailedPreconditionError(
                "the quarantine may hold snapshots that containerd needs and the store lacks: remove each there, in "
                f"this order: {'; '.join(missing)}"
            )
    return parsed.yes or agreed("delete them?")


def _keep(parsed: argparse.Namespace, client: str, parents: Mapping[str, str]) -> bool:
    """
    Return whether unusable directories stay in place, because containerd may need the snapshots in them.
    """
    if not protection.is_foreign(client, parents):
        return False
    try:
        lost = protection.lost(parsed, client, parents)
    except protection.UNASKED as error:
        reason = f"containerd cannot be asked: {protection.unasked(error)}"
    else:
        if not lost:
            return False
        reason = f"containerd needs snapshots that the store lacks: {', '.join(lost)}"
    complain(f"directories without a usable record are left in place, because {reason}", DONE)
    return True
