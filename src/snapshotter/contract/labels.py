"""
The rules for keys and labels.
"""

from collections.abc import Iterable, Mapping

from snapshotter.errors import InvalidArgumentError, quoted
from snapshotter.model import Info

__all__ = ["apply_fieldpaths", "check_key", "check_labels"]

# The cap of bolt, where containerd's own snapshotters keep their keys.
MAX_KEY_SIZE = 32_768

# containerd's cap on the bytes of one label, key and value together.
MAX_LABEL_SIZE = 4_096

# containerd has none; nobody sets more than a few dozen.
MAX_LABELS = 1_000

# Of a key or label in the text of an error, which is sent in a header; containerd's keys are shorter.


def check_key(key: str) -> None:
    """
    Refuse what cannot be the key or name of a snapshot.

    Any text is one, slashes and NUL included, that is not empty and whose
    UTF-8 has at most 32,768 bytes.

    Raises:
        InvalidArgumentError: *key* is empty, too large, not a string, or not encodable.
    """
    size = _size(key, "key")
    if not size:
        raise InvalidArgumentError("the key is empty")
    if size > MAX_KEY_SIZE:
        raise InvalidArgumentError(f"key {quoted(key)} has {size} bytes, more than {MAX_KEY_SIZE}")


def check_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """
    Return *labels* as they are stored, without those whose value is empty.

    Raises:
        InvalidArgumentError: There are more than 1,000, a key is empty, key and
            value have more than 4,096 bytes of UTF-8 together, or either is
            not a string or not encodable.
    """
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise InvalidArgumentError(f"labels are a mapping, not {labels!r:.64}")
    if len(labels) > MAX_LABELS:
        raise InvalidArgumentError(f"{len(labels)} labels are more than {MAX_LABELS}")
    for key, value in labels.items():
        size = _size(key, "label") + _size(value, f"value of label {quoted(key)}")
        if not key:
            raise InvalidArgumentError("the key of a label is empty")
        if size > MAX_LABEL_SIZE:
            raise InvalidArgumentError(
                f"label {quoted(key)} has {size} bytes of key and value, more than {MAX_LABEL_SIZE}"
            )
    return {key: value for key, value in labels.items() if value}


def apply_fieldpaths(current: Info, given: Info, fieldpaths: Iterable[str]) -> dict[str, str]:
    """
    Return the labels that an update of *current* by *given* leaves.

    ``"labels"``, or no path at all, replaces them. ``"labels.KEY"`` sets the
    one label *KEY*, which is everything after the first dot, and deletes it
    when *given* has none or an empty one. Whatever else *given* says is ignored.

    Raises:
        InvalidArgumentError: Another path, or the labels break the rules of ``check_labels``.
    """
    labels = current.labels
    for path in tuple(fieldpaths) or ("labels",):
        match path:
            case "labels":
                labels = given.labels
            case str() if path.startswith("labels."):
                key = path.removeprefix("labels.")
                labels = {other: value for other, value in labels.items() if other != key}
                if value := given.labels.get(key):
                    labels[key] = value
            case _:
                raise InvalidArgumentError(f"cannot update {quoted(path)} field on snapshot {quoted(current.name)}")
    return check_labels(labels)


def _size(text: str, what: str) -> int:
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{what} {text!r:.64} is not a string")
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{what} {quoted(text)} cannot be encoded as UTF-8") from None
