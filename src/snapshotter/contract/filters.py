"""
containerd's filter language.

A filter is a list of selectors separated by commas, and matches if all selectors do::

    kind==active,labels."containerd.io/snapshot.ref"~=/^sha256:/

A selector is a field path, which matches if the field is present, or a field path, an operator (``==``, ``!=`` or
``~=``) and a value. Several filters match if any filter does.

The parser accepts exactly the filters that containerd accepts, with the same oddities and the same texts of errors.
"""

import enum
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from snapshotter.errors import InvalidArgumentError, NotSupportedError
from snapshotter.events import Event
from snapshotter.model import Info, Kind
from snapshotter.text import nearest

__all__ = ["Filter", "check", "parse"]

# Limits on all filters of a call together. The longest key fits, in quotes and with every byte escaped.
MAX_SIZE = 256 * 1024
MAX_SELECTORS = 64
_FIELDS = ("kind", "name", "parent", "labels")
_KINDS = tuple(str(kind).lower() for kind in Kind)
# The memory limit of a compiled regular expression, in bytes.
MAX_REGEX_MEMORY = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Selector:
    path: tuple[str, ...]
    holds: Callable[[str | None], bool]


@dataclass(frozen=True, slots=True)
class Filter:
    """
    Parsed filters, as `parse` returns them.
    """

    _alternatives: tuple[tuple[_Selector, ...], ...]

    def match(self, info: Info) -> bool:
        """
        Return whether any filter matches *info*.
        """
        return any(
            all(selector.holds(_field(info, selector.path)) for selector in selectors)
            for selectors in self._alternatives
        )


def parse(*filters: str) -> Filter:
    """
    Parse *filters* into a filter that matches if any of them does.

    No filters, or an empty filter, match everything. A regular expression that does not compile is logged and never
    matches.

    Raises:
        InvalidArgumentError: A filter does not parse, or the filters have more than 256 KiB or 64 selectors together.
        NotSupportedError: A filter uses ``~=``, and google-re2 is not installed.
    """
    for text in filters:
        if not isinstance(text, str):
            raise InvalidArgumentError(f"filter {text!r:.64} is not a string")
    texts = [_SURROGATE.sub("\ufffd", text) for text in filters]
    size = sum(len(text.encode()) for text in texts)
    if size > MAX_SIZE:
        raise InvalidArgumentError(f"the filters have {size} bytes, more than {MAX_SIZE}")
    # No filters are the same as an empty filter, which has no selectors.
    parsed = [_Parser(text).selectors() if text else [] for text in texts] or [[]]
    count = sum(len(selectors) for selectors in parsed)
    if count > MAX_SELECTORS:
        raise InvalidArgumentError(f"the filters have {count} selectors, more than {MAX_SELECTORS}")
    return Filter(
        tuple(
            tuple(_Selector(path, _test(operator, value)) for path, operator, value in selectors)
            for selectors in parsed
        )
    )


def check(*filters: str) -> None:
    """
    Refuse filters that `parse` accepts, as containerd does, although no snapshot can match them.

    Raises:
        InvalidArgumentError: A filter does not parse, or names a field or a kind that no snapshot has.
    """
    for text in filter(None, filters):
        for path, operator, value in _Parser(text).selectors():
            name = path[0]
            if name not in _FIELDS:
                cure = "" if operator else f"; the snapshot of that key is 'name=={name}'"
                raise InvalidArgumentError(
                    f"filter {text!r}: {name!r} is no field: did you mean {nearest(name, _FIELDS)!r}?{cure}"
                )
            if name == "labels" and len(path) == 1:
                raise InvalidArgumentError(f"filter {text!r}: name the label, as in 'labels.owner==me'")
            if name == "kind" and operator in ("==", "!=") and value not in _KINDS:
                raise InvalidArgumentError(
                    f"filter {text!r}: {value!r} is no kind: did you mean {nearest(value, _KINDS)!r}?"
                )


def _field(info: Info, path: tuple[str, ...]) -> str | None:
    match path[0]:
        case "kind":
            return str(info.kind).lower()
        case "name":
            return info.name
        case "parent":
            return info.parent
        case "labels":
            return info.labels.get(".".join(path[1:]))
    return None


def _test(operator: str, value: str) -> Callable[[str | None], bool]:
    match operator:
        case "":
            return lambda field: field is not None
        case "==":
            return lambda field: field == value
        case "!=":
            return lambda field: (field or "") != value
    return _regex(value)


def _regex(pattern: str) -> Callable[[str | None], bool]:
    # re2 takes linear time, while Python's engine takes exponential time for some patterns.
    try:
        import re2  # type: ignore[import-untyped]  # google-re2 has no stubs
    except ImportError as error:
        raise NotSupportedError(
            "the filter operator ~= needs google-re2, of the extra btrfs-snapshotter[daemon]"
        ) from error
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_REGEX_MEMORY
    try:
        compiled = re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError):
        Event.BAD_PATTERN.emit(error=pattern)
        return lambda _: False
    return lambda field: compiled.search(field or "") is not None


class _Token(enum.Enum):
    END = enum.auto()
    QUOTED = enum.auto()
    VALUE = enum.auto()
    FIELD = enum.auto()
    SEPARATOR = enum.auto()
    OPERATOR = enum.auto()
    ILLEGAL = enum.auto()
    OTHER = enum.auto()


# Go decodes these as U+FFFD.
_SURROGATE = re.compile("[\ud800-\udfff]")
_FIELD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_OPERATOR = frozenset("=!~")
_QUOTE = frozenset('"/|')
_SEPARATOR = frozenset(",.")
_BEFORE_VALUE = _FIELD | _OPERATOR | _QUOTE | _SEPARATOR
# Go's unicode.IsSpace; str.isspace has U+001C to U+001F as well.
_SPACE = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000").union(map(chr, range(0x2000, 0x200B)))
_OCTAL = frozenset("01234567")
_HEX = frozenset("0123456789abcdefABCDEF")
_DIGITS = {"x": 2, "u": 4, "U": 8}
_CONTROL = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}
_ESCAPE = re.compile(rb"\\([0-7]{3}|x..|u.{4}|U.{8}|.)")
# The number of characters that an error quotes on either side of its position.
_EXCERPT = 512


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        # Values and fields differ in their characters. True from an operator to the next separator or value.
        self.in_value = False
        # The first error, even if the illegal character was only peeked at.
        self.error = ""

    def peek(self) -> str:
        """
        Return the next character, or "" at the end and for an illegal character.
        """
        character = self.text[self.position : self.position + 1]
        # Go cannot tell U+FFFD from invalid UTF-8.
        if character == "\ufffd":
            self._illegal("rune error")
        elif character == "\0":
            self._illegal("unexpected null")
        else:
            return character
        return ""

    def scan(self) -> tuple[int, _Token, str]:
        """
        Return the position, the kind and the text of the next token.
        """
        while self.peek() in _SPACE:
            self.position += 1
        start = self.position
        character = self.peek()
        if not character:
            return start, _Token.END if start == len(self.text) else _Token.ILLEGAL, ""
        token = self._token(character)
        return start, token, self.text[start : self.position]

    def _token(self, character: str) -> _Token:
        if not self.in_value and character not in _BEFORE_VALUE:
            return _Token.OTHER
        self.position += 1
        if character in _QUOTE:
            return _Token.QUOTED if self._quoted(character) else _Token.ILLEGAL
        if character in _SEPARATOR:
            self.in_value = False
            return _Token.SEPARATOR
        if character in _OPERATOR:
            self._skip(_OPERATOR.__contains__)
            self.in_value = True
            return _Token.OPERATOR
        if self.in_value:
            # containerd accepts any first character, even a control character.
            self._skip(_is_value)
            self.in_value = False
            return _Token.VALUE
        self._skip(_FIELD.__contains__)
        return _Token.FIELD

    def _skip(self, accept: Callable[[str], bool]) -> None:
        while accept(self.peek()):
            self.position += 1

    def _quoted(self, quote: str) -> bool:
        legal = True
        while (character := self.peek()) != quote:
            if not character or character == "\n":
                self._illegal("quoted literal not terminated")
                return False
            self.position += 1
            if character == "\\":
                legal = self._escape(quote) and legal
        self.position += 1
        return legal

    def _escape(self, quote: str) -> bool:
        character = self.peek()
        if character == quote or character in _CONTROL:
            self.position += 1
            return True
        if character in _OCTAL:
            return self._digits(_OCTAL, 3)
        if character in _DIGITS:
            self.position += 1
            return self._digits(_HEX, _DIGITS[character])
        self._illegal("illegal escape sequence")
        return False

    def _digits(self, digits: frozenset[str], count: int) -> bool:
        for _ in range(count):
            if self.peek() not in digits:
                self._illegal("illegal numeric escape sequence")
                return False
            self.position += 1
        return True

    def _illegal(self, message: str) -> None:
        self.error = self.error or message


def _is_value(character: str) -> bool:
    # Letters, marks, numbers, punctuation and symbols, as in Go's scanner.
    return character not in ("", ",") and character not in _SPACE and unicodedata.category(character)[0] in "LMNPS"


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._scanner = _Scanner(text)

    def selectors(self) -> list[tuple[tuple[str, ...], str, str]]:
        """
        Return the path, operator and value of each selector; both are "" for a test of presence.
        """
        selectors = [self._selector()]
        while self._scanner.position < len(self._text):
            character = self._scanner.peek() or "\ufffd"
            if character != ",":
                raise self._error(self._scanner.position, f"unexpected input: {character}")
            self._scanner.scan()
            selectors.append(self._selector())
        return selectors

    def _selector(self) -> tuple[tuple[str, ...], str, str]:
        path = [self._field()]
        while self._scanner.peek() == ".":
            self._scanner.scan()
            path.append(self._field())
        if self._scanner.peek() == "," or self._scanner.position == len(self._text):
            return tuple(path), "", ""
        operator = self._operator()
        return tuple(path), operator, self._value(operator)

    def _field(self) -> str:
        start, token, text = self._scan()
        if token is _Token.FIELD:
            return text
        if token is _Token.QUOTED:
            return self._unquoted(start, text)
        raise self._error(start, "expected field or quoted")

    def _operator(self) -> str:
        start, token, text = self._scan()
        if token is not _Token.OPERATOR:
            raise self._error(start, 'expected an operator ("=="|"!="|"~=")')
        if text not in ("==", "!=", "~="):
            raise self._error(start, f'unsupported operator "{text}"')
        return text

    def _value(self, operator: str) -> str:
        start, token, text = self._scan()
        if token is _Token.VALUE:
            return text
        if token is _Token.QUOTED:
            return self._unquoted(start, text, slashes=operator == "~=")
        raise self._error(start, "expected value or quoted")

    def _scan(self) -> tuple[int, _Token, str]:
        start, token, text = self._scanner.scan()
        if token is _Token.ILLEGAL:
            raise self._error(start, self._scanner.error)
        return start, token, text

    def _unquoted(self, start: int, text: str, *, slashes: bool = False) -> str:
        if text[0] != '"' and not slashes:
            raise self._error(start, "invalid quote encountered")
        try:
            value = _ESCAPE.sub(_unescaped, text[1:-1].encode())
        except ValueError:
            raise self._error(start, "unquoting failed: quote syntax error") from None
        # Escapes can produce invalid UTF-8. Decoded like this, it equals no field.
        return value.decode(errors="surrogateescape")

    def _error(self, position: int, message: str) -> InvalidArgumentError:
        before, after = self._text[:position], self._text[position + 1 :]
        if len(before) > _EXCERPT:
            before = f"...{before[-_EXCERPT:]}"
        if len(after) > _EXCERPT:
            after = f"{after[:_EXCERPT]}..."
        place = f"{before} >|{self._text[position]}|< {after}" if position < len(self._text) else before
        return InvalidArgumentError(f"filters: parse error: [{place}]: {message}")


def _unescaped(match: re.Match[bytes]) -> bytes:
    """
    Return the bytes of one escape sequence, which the scanner has accepted.
    """
    escape = match[1].decode()
    if escape[0] in _OCTAL:
        return bytes([int(escape, 8)])
    if escape[0] not in _DIGITS:
        return _CONTROL.get(escape, escape).encode()
    number = int(escape[1:], 16)
    # Go's rune is a signed 32-bit integer. From 2**31 it is negative, so below 128, and becomes one byte.
    if escape[0] == "x" or number >= 1 << 31:
        return bytes([number & 0xFF])
    # A surrogate becomes U+FFFD.
    return _SURROGATE.sub("\ufffd", chr(number)).encode()
