"""
The interfaces of other bindings of btrfs, so that their users move by changing an import.
"""
