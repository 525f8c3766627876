"""
A process that calls a module with the interface of libbtrfsutil: reads a call from each line of JSON, and answers it
with a line of JSON.

The Python of the distribution runs it too, so it imports nothing of this project by itself.
"""

import importlib
import json
import os
import sys

NOBODY = 65534


def plain(value):
    """
    Return a value for JSON, without the parts that differ between two runs: uuids, transactions and times.
    """
    if type(value).__name__ == "SubvolumeInfo":
        assert len(value) == 14
        uuids = [any(uuid) for uuid in (value.uuid, value.parent_uuid, value.received_uuid)]
        times = [time > 0 for time in (value.ctime, value.otime, value.stime, value.rtime)]
        transids = [value.stransid, value.rtransid, value.otransid > 0]
        return [value.id, value.parent_id, value.dir_id, value.flags, uuids, transids, times]
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value


def exactly(value):
    """
    Return a value for JSON completely, with times in whole seconds, as libbtrfsutil returns them.
    """
    if type(value).__name__ == "SubvolumeInfo":
        times = [value.ctime, value.otime, value.stime, value.rtime]
        return [one.hex() if isinstance(one, bytes) else int(one) for one in (*value, *times)]
    if isinstance(value, (list, tuple)):
        return [exactly(one) for one in value]
    return value


def perform(module, name, arguments, options):
    if name == "SubvolumeIterator":
        with module.SubvolumeIterator(*arguments, **options) as found:
            return list(found)
    return getattr(module, name)(*arguments, **options)


def main():
    module = importlib.import_module(sys.argv[1])
    os.chdir(sys.argv[2])
    if sys.argv[3:] == ["nobody"]:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    for line in sys.stdin:
        name, arguments, options, how = json.loads(line)
        try:
            if name == "chdir":
                answer = os.chdir(*arguments)
            else:
                answer = {"plain": plain, "exactly": exactly}[how](perform(module, name, arguments, options))
        except Exception as error:
            answer = {"error": type(error).__name__}
            if isinstance(error, OSError):
                answer.update(
                    errno=error.errno,
                    strerror=error.strerror,
                    filename=error.filename,
                    filename2=error.filename2,
                    code=error.btrfsutilerror,
                    text=str(error),
                )
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
