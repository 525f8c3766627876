"""
Benchmarks of both packages against the bare system calls and the ``btrfs`` command: ``python -m benchmarks``.

Timing decides no test. Contenders take turns in one run, because a busy machine then slows all of them alike.
"""
