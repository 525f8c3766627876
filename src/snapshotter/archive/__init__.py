"""
Export of snapshots to tar streams, and import of tar streams as committed snapshots: see `snapshotter.archive.tar`.
"""
