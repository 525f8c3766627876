"""
Rules for the keys and labels of snapshots.
"""

from collections.abc import Iterable, Mapping

from snapshotter.errors import InvalidArgumentError, quoted
from snapshotter.model import Info

__all__ = ["apply_fieldpaths", "check_key", "check_labels"]

# The limit of bolt, the database that containerd's own snapshotters keep their keys in.
MAX_KEY_SIZE = 32_768

# containerd's limit on one label, key and value together, in bytes.
MAX_LABEL_SIZE = 4_096


def check_key(key: str) -> None:
    """
    Check the key or name of a snapshot.

    A key is any text, including slashes and NUL, of 1 to 32,768 bytes of UTF-8.

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
    Return the labels to store: *labels* without the labels whose value is empty.

    Raises:
        InvalidArgumentError: A key is empty. A key or value is not a string, or not encodable. A key and its value have
            more than 4,096 bytes of UTF-8 together.
    """
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise InvalidArgumentError(f"labels are a mapping, not {labels!r:.64}")
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
    Return the labels of *current* after an update to *given*.

    The fieldpath ``"labels"``, or an empty *fieldpaths*, replaces all labels. The fieldpath ``"labels.KEY"`` sets the
    label *KEY*, or deletes the label if *given* has no value for it. *KEY* is all text after the first dot. The other
    fields of *given* are ignored.

    Raises:
        InvalidArgumentError: A fieldpath is of another form, or the labels break the rules of `check_labels`.
    """
    labels = current.labels
    for path in tuple(fieldpaths) or ("labels",):
        match path:
            case "labels":
                labels = given.labels
            case str() if path.startswith("labels."):
                key = path.removeprefix("labels.")
                labels = {each: value for each, value in labels.items() if each != key}
                if value := given.labels.get(key):
                    labels[key] = value
            case _:
                raise InvalidArgumentError(f"cannot update {quoted(path)} field on snapshot {quoted(current.name)}")
    return check_labels(labels)


def _size(text: str, name: str) -> int:
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{name} {text!r:.64} is not a string")
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{name} {quoted(text)} cannot be encoded as UTF-8") from None
