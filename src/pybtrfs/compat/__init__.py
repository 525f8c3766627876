"""
Interfaces of other btrfs bindings, so that their users can move by changing an import.
"""
