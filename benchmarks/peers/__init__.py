"""
Benchmarks of the snapshotter beside containerd's own: ``python -m benchmarks.peers``.

All contestants are measured in one run, in turns, each on a btrfs of its own; the Go program here is all that is not
Python. Timing decides no test.
"""
