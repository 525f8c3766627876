"""
containerd's filter language: tables of filters, and containerd's own parser as the oracle of random filters.
"""

import base64
import json
import logging
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snapshotter.contract.filters import MAX_SELECTORS, MAX_SIZE, check, parse
from snapshotter.errors import InvalidArgumentError, NotSupportedError
from snapshotter.events import Event
from snapshotter.model import Info, Kind
from tests.containerd.builds import go_program
from tests.containerd.needed import needed

INFO = Info(Kind.ACTIVE, "foo", labels={"a": "b", "x.y/z": "1 2", "bytes": "é"})
ACCEPTED = {
    "": True,
    "name": True,
    "parent": True,
    "parent.whatever": True,
    "absent": False,
    "labels": False,
    "labels.a": True,
    "labels.b": False,
    "name==foo": True,
    "name == foo": True,
    "name==  foo": True,
    "name==foo, kind==active": True,
    "name==foo,kind==view": False,
    "kind==Active": False,
    'name=="foo"': True,
    '"name"=="f\\x6f\\157"': True,
    'labels.x.y."/z"': False,
    'labels."x.y/z"=="1 2"': True,
    'labels."x"."y/z"': True,
    "labels. a": True,
    'parent==""': True,
    "name!=foo": False,
    "name!=bar": True,
    "absent!=bar": True,
    'absent!=""': False,
    'absent==""': False,
    "name~=^fo+$": True,
    "name~=o": True,
    "name~=x": False,
    "name~=/^f/": True,
    "name~=|^f|": True,
    'name~="^f"': True,
    "name~=/(/": False,
    "absent~=/^$/": True,
    "name==a=b!~": False,
    'name==a"b': False,
    "name==\x01": False,
    'labels.bytes=="é"': True,
    'labels.bytes=="\\xc3\\xa9"': True,
    'labels.bytes=="\\u00e9"': True,
    'labels.bytes=="\\U000000e9"': True,
    'labels.bytes=="\\303\\251"': True,
    'labels.bytes=="\\xc3"': False,
    'labels.a=="\\U80000062"': True,
    'name=="\\ud800"': False,
    'name=="\\a\\b\\f\\n\\r\\t\\v\\\\\\""': False,
    "name~=/\\/\\\\d/": False,
}
REFUSED = {
    ",": "[ >|,|< ]: expected field or quoted",
    "name,": "[name,]: expected field or quoted",
    "name ,kind": '[name  >|,|< kind]: expected an operator ("=="|"!="|"~=")',
    "name ": '[name ]: expected an operator ("=="|"!="|"~=")',
    "a..b": "[a. >|.|< b]: expected field or quoted",
    "na-me": '[na >|-|< me]: expected an operator ("=="|"!="|"~=")',
    "name=foo": '[name >|=|< foo]: unsupported operator "="',
    "name===foo": '[name >|=|< ==foo]: unsupported operator "==="',
    "name==": "[name==]: expected value or quoted",
    "name==,": "[name== >|,|< ]: expected value or quoted",
    "name==.foo": "[name== >|.|< foo]: expected value or quoted",
    "name==/foo": "[name== >|/|< foo]: quoted literal not terminated",
    "name==/foo/": "[name== >|/|< foo/]: invalid quote encountered",
    "/name/": "[ >|/|< name/]: invalid quote encountered",
    "'name'": "[ >|'|< name']: expected field or quoted",
    "name==foo bar": "[name==foo >| |< bar]: unexpected input:  ",
    'name=="foo"bar': '[name=="foo" >|b|< ar]: unexpected input: b',
    'name=="a\nb"': '[name== >|"|< a\nb"]: quoted literal not terminated',
    'name=="\\q"': '[name== >|"|< \\q"]: illegal escape sequence',
    'name=="\\x4"': '[name== >|"|< \\x4"]: illegal numeric escape sequence',
    'name=="\\777"': '[name== >|"|< \\777"]: unquoting failed: quote syntax error',
    'name=="\\U00110000"': '[name== >|"|< \\U00110000"]: unquoting failed: quote syntax error',
    "name==a\0": "[name==a >|\0|< ]: unexpected input: \ufffd",
    "\0": "[ >|\0|< ]: unexpected null",
    "name==\ufffd": "[name== >|\ufffd|< ]: rune error",
    "name==\udcff,x": "[name== >|\ufffd|< ,x]: rune error",
    "labels .a": '[labels  >|.|< a]: expected an operator ("=="|"!="|"~=")',
    "absent~=.": "[absent~= >|.|< ]: expected value or quoted",
}


@pytest.mark.parametrize(("text", "matches"), ACCEPTED.items())
def test_accepted(text: str, matches: bool) -> None:
    """
    Each filter of the table parses, and matches INFO as the table says.
    """
    assert parse(text).match(INFO) is matches


@pytest.mark.parametrize(("text", "message"), REFUSED.items())
def test_refused(text: str, message: str) -> None:
    """
    Each filter of the table is refused with containerd's message.
    """
    with pytest.raises(InvalidArgumentError) as caught:
        parse(text)
    assert str(caught.value) == f"filters: parse error: {message}"


def test_long_filter() -> None:
    """
    An error quotes at most 512 characters on either side of its position.
    """
    with pytest.raises(InvalidArgumentError) as caught:
        parse(f"name=={'a' * 1000} {'b' * 1000}")
    excerpt = f"[...{'a' * 512} >| |< {'b' * 512}...]"
    assert str(caught.value) == f"filters: parse error: {excerpt}: unexpected input:  "


def test_any_of_several_filters() -> None:
    """
    Several filters match if any of them does; no filter and an empty filter match everything.

    An invalid filter makes the whole call fail.
    """
    assert parse().match(INFO)
    assert parse("name==bar", "").match(INFO)
    assert parse("name==bar", "name==foo").match(INFO)
    assert not parse("name==bar", "kind==view").match(INFO)
    with pytest.raises(InvalidArgumentError):
        parse("", "name==")


def test_labels_are_absent_without_any() -> None:
    """
    The field "labels" alone is never present, nor is any label of a snapshot without labels.
    """
    assert not parse("labels").match(Info(Kind.VIEW, "v"))
    assert not parse("labels.a").match(Info(Kind.VIEW, "v"))


@pytest.mark.parametrize("kind", Kind)
def test_kinds(kind: Kind) -> None:
    """
    Filters spell kinds in lower case.
    """
    assert parse(f"kind=={kind.lower()}").match(Info(kind, "x"))


def test_bad_regex_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """
    A regular expression that does not compile, or needs too much memory, is logged and never matches.
    """
    with caplog.at_level(logging.WARNING):
        assert not parse("name~=/(/").match(INFO)
        assert not parse('name~="\\xff"').match(INFO)
        assert not parse('name~="(((a{0,30}){30}){0,30}|é)*"').match(INFO)
    assert [record.event for record in caplog.records] == [Event.BAD_PATTERN] * 3


def test_regex_takes_linear_time() -> None:
    """
    A pattern that takes a backtracking engine days is matched at once.
    """
    assert not parse('name~="(a+)+$"').match(Info(Kind.ACTIVE, "a" * 1000 + "b"))


def test_regex_without_google_re2(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without google-re2 only ``~=`` fails, and the error names the extra.
    """
    monkeypatch.setitem(sys.modules, "re2", None)
    assert parse("name==foo").match(INFO)
    text = r"the filter operator ~= needs google-re2, of the extra btrfs-snapshotter\[daemon\]"
    with pytest.raises(NotSupportedError, match=text):
        parse("name~=foo")


def test_longest_key() -> None:
    """
    A filter by the longest key is accepted, with every byte escaped.
    """
    key, escaped = "\0" * 32_768, "\\x00" * 32_768
    assert parse(f'name=="{escaped}"').match(Info(Kind.ACTIVE, key))


@pytest.mark.parametrize(
    ("filters", "text"),
    [
        (["x" * (MAX_SIZE + 1)], "262145 bytes, more than 262144"),
        (["é" * MAX_SIZE], "524288 bytes"),
        ([",".join(["name"] * (MAX_SELECTORS + 1))], "65 selectors, more than 64"),
        (["name~=a"] * (MAX_SELECTORS + 1), "65 selectors, more than 64"),
        ([7], "filter 7 is not a string"),
        (["name", None], "filter None is not a string"),
    ],
)
def test_caps(filters: list[str], text: str) -> None:
    """
    Filters beyond the limits are refused.
    """
    with pytest.raises(InvalidArgumentError, match=text):
        parse(*filters)


def test_largest_filters() -> None:
    """
    Filters at the limits are allowed, and an error quotes only the text around its position.
    """
    assert parse(*["name"] * MAX_SELECTORS).match(INFO)
    with pytest.raises(InvalidArgumentError) as caught:
        parse("x" * (MAX_SIZE - 1) + "-")
    assert len(str(caught.value)) < 2_000


# containerd's parser


class Answer(NamedTuple):
    error: bytes | None
    matches: list[bool]


Oracle = Callable[[bytes, list[Info]], Answer]


def _b64(text: bytes | str) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def _request(text: bytes, infos: list[Info]) -> str:
    return json.dumps(
        {
            "filter": _b64(text),
            "infos": [
                {
                    "kind": _b64(info.kind.lower()),
                    "name": _b64(info.name),
                    "parent": _b64(info.parent),
                    "labels": [{"key": _b64(key), "value": _b64(value)} for key, value in info.labels.items()],
                }
                for info in infos
            ],
        }
    )


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    """
    containerd's own pkg/filters, in a small Go program.
    """
    program = needed(go_program, Path(__file__).parent / "oracle")
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout

        def ask(text: bytes, infos: list[Info]) -> Answer:
            assert process.stdin
            assert process.stdout
            print(_request(text, infos), file=process.stdin, flush=True)
            answer = json.loads(process.stdout.readline())
            error = answer["Error"]
            return Answer(None if error is None else base64.b64decode(error), answer["Matches"] or [])

        yield ask
        process.stdin.close()


def compare(oracle: Oracle, text: str, infos: list[Info]) -> None:
    """
    Assert that *text* is accepted or refused as by containerd, and matches the same of *infos*.
    """
    encoded = text.encode("utf-8", "surrogateescape")
    text = encoded.decode("utf-8", "surrogateescape")  # bytes side by side can become a character
    answer = oracle(encoded, infos)
    try:
        parsed = parse(text)
    except InvalidArgumentError as error:
        assert answer.error is not None, f"containerd accepts {text!r}: {error}"
        assert plain(str(error).encode()) == plain(answer.error)
    else:
        assert answer.error is None, f"containerd refuses {text!r}: {answer.error!r}"
        assert [parsed.match(info) for info in infos] == answer.matches


def plain(message: bytes) -> bytes:
    """
    Return *message* without the details that a Python string cannot express.

    containerd marks one byte where this parser marks a character. Invalid UTF-8 shows as one or several U+FFFD.
    """
    before, mark, rest = message.partition(b" >|")
    marked, _, after = rest.partition(b"|< ")
    if mark and not marked.isascii():
        message = before + marked + after
    shown = message.decode(errors="replace").encode()
    while (shorter := shown.replace("\ufffd\ufffd".encode(), "\ufffd".encode())) != shown:
        shown = shorter
    return shown


# Python and Go know different versions of Unicode; what 3.2 had is the same in all.
characters = st.characters().filter(lambda c: unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs"))
words = st.sampled_from(["a", "b", "ab", "A1_", "x.y", "k/v", "é", "1 2", "/", "", "\0", "日本"])
raw = st.binary(max_size=8).map(lambda noise: noise.decode("utf-8", "surrogateescape"))
escapes = st.sampled_from(
    [
        r"\n",
        r"\\",
        r"\"",
        r"\/",
        r"\|",
        r"\'",
        r"\q",
        r"\0",
        r"\101",
        r"\400",
        r"\x61",
        r"\x",
        r"\xff",
        r"\xc3\xa9",
        r"\u0061",
        r"\u00e9",
        r"\ud83d",
        r"\U00000061",
        r"\U0001F600",
        r"\U00110000",
        r"\U80000061",
        r"\Uffffffff",
    ]
)
quoted = st.builds(
    lambda quote, parts, end: quote + "".join(parts) + (quote if end else ""),
    st.sampled_from('""""/|'),
    st.lists(words | escapes | characters, max_size=4),
    st.integers(0, 19),
)
fields = st.sampled_from(["name", "kind", "parent", "labels", "labels.a", "labels.x.y", "labels.k", "other", "_0"])
operators = st.sampled_from(["==", "!=", "~=", " == ", "=", "===", "!", "~", "=~", ""])
patterns = st.sampled_from(
    ["a", "^a", "b$", "a|b", "(", "[a-c]+", "\\\\d", "a{2}", "a{1001}", "(?i)AB", ".", "\\\\pL", "x*"]
)
patterns = patterns.flatmap(lambda pattern: st.sampled_from([pattern, f'"{pattern}"', f"/{pattern}/", f"|{pattern}|"]))
selectors = st.tuples(fields | quoted, operators, words | quoted | patterns).map("".join)
well_formed = st.lists(selectors, min_size=1, max_size=3).map(",".join)
pieces = (
    fields | operators | quoted | words | escapes | characters | raw | st.sampled_from(list(",. \t\n\x85\xa0\u2003'"))
)
filters = well_formed | st.lists(pieces, max_size=8).map("".join) | raw

values = words | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
infos = st.builds(
    Info,
    st.sampled_from(Kind),
    values,
    values,
    st.dictionaries(st.sampled_from(["a", "x.y", "k/v", "é", "k", "x"]) | values, values, max_size=4),
)


@settings(max_examples=2_000, deadline=None, derandomize=True)
@given(filters, st.lists(infos, min_size=1, max_size=4))
@example('a=="\\U80000062"', [INFO])
@example("a==x\x85y", [INFO])
@example("name==\x1c", [INFO])
def test_as_containerd(oracle: Oracle, text: str, infos: list[Info]) -> None:
    """
    Any filter is accepted or refused as by containerd, with the same message, and matches the same.
    """
    compare(oracle, text, infos)


@pytest.mark.parametrize("text", [*ACCEPTED, *REFUSED])
def test_table_as_containerd(oracle: Oracle, text: str) -> None:
    """
    The tables above agree with containerd.
    """
    compare(oracle, text, [INFO])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "kind",
        'parent==""',
        "kind==view,kind!=active",
        "kind~=x",
        "labels.a",
        'labels."a.b"!=c',
        "name.x==a",
    ],
)
def test_check(text: str) -> None:
    """
    A filter that a snapshot can match is not refused.
    """
    check(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("web", "'web' is no field"),
        ("name==a,nane==b", "'nane' is no field: did you mean 'name'?"),
        ("kind==Active", "'Active' is no kind: did you mean 'active'?"),
        ("kind!=actve", "did you mean 'active'?"),
        ("labels==a", "name the label"),
        ("name==", "expected value or quoted"),
    ],
)
def test_check_refuses(text: str, message: str) -> None:
    """
    A filter is refused if it names a field or a kind that no snapshot has, or does not parse.
    """
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        check("name==other", text)
