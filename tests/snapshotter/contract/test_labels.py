"""
Rules for keys and labels, without a store.
"""

import pytest

from snapshotter.contract.labels import (
    MAX_KEY_SIZE,
    MAX_LABEL_SIZE,
    apply_fieldpaths,
    check_key,
    check_labels,
)
from snapshotter.errors import InvalidArgumentError
from snapshotter.model import Info, Kind


def info(**labels: str) -> Info:
    return Info(Kind.ACTIVE, "key", labels=labels)


@pytest.mark.parametrize("key", ["k", "default/1/a key", "/", "..", "a\0b", "\n", "é" * (MAX_KEY_SIZE // 2), "\ufffd"])
def test_any_text_is_a_key(key: str) -> None:
    """
    A key may have slashes, NUL and every other character with a UTF-8 encoding.
    """
    check_key(key)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("", "the key is empty"),
        ("x" * (MAX_KEY_SIZE + 1), "32769 bytes, more than 32768"),
        ("é" * (MAX_KEY_SIZE // 2) + "x", "32769 bytes, more than 32768"),
        ("a\udc80", r"key 'a\\udc80' cannot be encoded"),
        (b"bytes", "key b'bytes' is not a string"),
        (None, "key None is not a string"),
    ],
)
def test_bad_key(key: str, text: str) -> None:
    """
    The error names the rule, and quotes only the beginning of a long key.
    """
    with pytest.raises(InvalidArgumentError, match=text) as caught:
        check_key(key)
    assert len(str(caught.value)) < 500


def test_labels_without_value_are_dropped() -> None:
    """
    Labels with an empty value are dropped, and None is no labels.
    """
    given = {"a": "1", "b": "", "c": " "}
    assert check_labels(given) == {"a": "1", "c": " "}
    assert given == {"a": "1", "b": "", "c": " "}
    assert check_labels(None) == {}


def test_largest_labels() -> None:
    """
    Labels at the limits are allowed.
    """
    assert check_labels({"k" * 96: "v" * (MAX_LABEL_SIZE - 96)})
    assert len(check_labels({f"k{n}": "v" for n in range(10_000)})) == 10_000


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ({"": "v"}, "the key of a label is empty"),
        ({"k": "v" * MAX_LABEL_SIZE}, "label 'k' has 4097 bytes of key and value, more than 4096"),
        ({"k" * (MAX_LABEL_SIZE + 1): ""}, "label 'kkk.* has 4097 bytes"),
        ({"é": "é" * (MAX_LABEL_SIZE // 2)}, "4098 bytes"),
        ({"k": "\ud800"}, "value of label 'k' .*cannot be encoded"),
        ({"k\ud800": "v"}, "label .*cannot be encoded"),
        ({"k": 1}, "value of label 'k' 1 is not a string"),
        ({1: "v"}, "label 1 is not a string"),
        ([("k", "v")], "labels are a mapping"),
    ],
)
def test_bad_labels(labels: dict[str, str], text: str) -> None:
    """
    The error names the limit and the label.
    """
    with pytest.raises(InvalidArgumentError, match=text) as caught:
        check_labels(labels)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("paths", "given", "left"),
    [
        ((), {"n": "3"}, {"n": "3"}),
        ((), {}, {}),
        (("labels",), {"n": "3", "e": ""}, {"n": "3"}),
        (("labels.a",), {"a": "9", "n": "3"}, {"a": "9", "b.c/d": "2"}),
        (("labels.a",), {}, {"b.c/d": "2"}),
        (("labels.a",), {"a": ""}, {"b.c/d": "2"}),
        (("labels.b.c/d", "labels.n"), {"b.c/d": "9", "n": "3"}, {"a": "1", "b.c/d": "9", "n": "3"}),
        (("labels.absent",), {}, {"a": "1", "b.c/d": "2"}),
        (("labels.",), {}, {"a": "1", "b.c/d": "2"}),
        (("labels.a", "labels"), {"n": "3"}, {"n": "3"}),
        (("labels", "labels.a"), {"n": "3"}, {"n": "3"}),
        (("labels." + "x" * 5000,), {}, {"a": "1", "b.c/d": "2"}),
    ],
)
def test_fieldpaths(paths: tuple[str, ...], given: dict[str, str], left: dict[str, str]) -> None:
    """
    The fieldpaths replace, set and delete labels, one after the other.
    """
    current = info(**{"a": "1", "b.c/d": "2"})
    assert apply_fieldpaths(current, info(**given), paths) == left
    assert current.labels == {"a": "1", "b.c/d": "2"}


@pytest.mark.parametrize("path", ["", "name", "parent", "kind", "Labels", "label.a", " labels", "labelsa", ["labels"]])
def test_immutable_field(path: str) -> None:
    """
    Only labels can be updated, and the error names the fieldpath and the snapshot.
    """
    with pytest.raises(InvalidArgumentError, match=r"cannot update .* field on snapshot 'key'"):
        apply_fieldpaths(info(), info(a="1"), ["labels.a", path])


def test_other_fields_are_ignored() -> None:
    """
    A changed parent or kind is ignored.
    """
    given = info(a="1")._replace(kind=Kind.VIEW, parent="other")
    assert apply_fieldpaths(info(b="2"), given, []) == {"a": "1"}


@pytest.mark.parametrize("paths", [(), ("labels",), ("labels.k",)])
def test_updated_labels_are_checked(paths: tuple[str, ...]) -> None:
    """
    An update is refused if prepare would refuse its labels.
    """
    with pytest.raises(InvalidArgumentError, match="4097 bytes"):
        apply_fieldpaths(info(), info(k="v" * MAX_LABEL_SIZE), paths)
