"""
Benchmarks of the snapshotter against containerd's own: ``python -m benchmarks.peers``.

All contestants take turns in one run, each on a btrfs of its own. Only the program in ``main.go`` is not Python. Timing
decides no test.
"""
