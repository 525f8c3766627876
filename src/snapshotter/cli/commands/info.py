"""
``snapshotter info`` and ``usage``.
"""

import argparse

from snapshotter.cli import arguments, display, keys, output, used_by
from snapshotter.cli.codes import DONE, report
from snapshotter.errors import DataLossError, Error, NotFoundError, UnavailableError, quoted


def add(commands: arguments.Commands) -> None:
    shared = arguments.JSON, arguments.BYTES
    commands.add("info", _info, arguments.KEY, *shared, example="snapshotter info web")
    commands.add("usage", _usage, arguments.KEYS, *shared, arguments.NO_TRUNC, example="snapshotter usage web base")


def _info(parsed: argparse.Namespace) -> None:
    from snapshotter.analysis import inventory  # usage does without

    with arguments.measuring(parsed) as store:
        key = keys.resolve(parsed, store, parsed.key)
        entries = inventory.take(store, measured=False).entries
        entry = entries.get(key)
        if entry is None:
            raise NotFoundError(f"snapshot {quoted(key)} was removed or committed concurrently")
        try:
            entry = entry._replace(usage=store.usage(key))
        except DataLossError:
            pass  # the subvolume of the snapshot or of its parent is lost
        except UnavailableError as error:
            entry = entry._replace(problem=entry.problem or str(error))
        users = used_by.find(store)
    children = [other.info.name for other in entries.values() if other.info.parent == key]
    if parsed.json:
        output.print_json(output.detailed(entry) | users.json(key) | {"children": children})
        return
    amount = output.amount(parsed)
    info, volume, usage = entry.info, entry.volume, entry.usage
    fields = [
        ("key", info.name),
        ("kind", str(info.kind)),
        ("parent", info.parent),
        ("created", output.time(info.created)),
        ("updated", output.time(info.updated)),
        *(("label", f"{name}={value}") for name, value in sorted(info.labels.items())),
        ("size", amount(usage.size) if usage else ""),
        ("inodes", str(usage.inodes) if usage else ""),
        ("subvolume", f"{volume.path}, id {volume.info.id}" if volume else ""),
        ("mounted", "yes" if entry.mounted else "no"),
        *(("child", name) for name in children),
        *(("used by", f"{user.kind} {user.name}") for user in users.of(key)),
        ("problem", entry.problem),
    ]
    display.fields((name, value) for name, value in fields if value)


def _usage(parsed: argparse.Namespace) -> int:
    usages = []
    code = DONE
    with arguments.measuring(parsed) as store:
        for text in parsed.keys:
            try:
                key = keys.resolve(parsed, store, text)
                usages.append((key, store.usage(key)))
            except Error as error:
                failure = report(error)
                code = code or failure
    if parsed.json:
        output.print_json([{"key": key, "size": usage.size, "inodes": usage.inodes} for key, usage in usages])
    else:
        amount = output.amount(parsed)
        rows = [(key, amount(usage.size), str(usage.inodes)) for key, usage in usages]
        if rows:
            display.table(("KEY", "SIZE", "INODES"), rows, whole=parsed.no_trunc)
    return code
