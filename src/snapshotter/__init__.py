"""
A snapshotter for containerd on btrfs.
"""

TYPE_CHECKING = False  # typing itself would be the slowest import here

if TYPE_CHECKING:
    from snapshotter.contract import Snapshotter
    from snapshotter.model import Info, Kind, Mount, Problem, Usage

__all__ = ["Info", "Kind", "Mount", "Problem", "Snapshotter", "Usage"]


def __getattr__(name: str) -> object:
    """
    Import a public name on first use, so that the command can catch Ctrl-C before it imports anything slow.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"{__name__}.{'contract' if name == 'Snapshotter' else 'model'}")
    value: object = getattr(module, name)
    globals()[name] = value
    return value
