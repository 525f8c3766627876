"""
The daemon's log: `snapshotter.events` written as text or JSON, and parsed again, also behind a journal's prefix.
"""

import contextlib
import json
import logging
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from json.encoder import encode_basestring_ascii as _string
from typing import Any, TextIO, get_args

from pybtrfs.path import owned
from snapshotter import events
from snapshotter.events import Event, LogFormat, LogLevel, format_event

POLL_SECONDS = 0.2  # between reads at the end of a log that is followed

_LEVELS: dict[int, LogLevel] = {getattr(logging, level.upper()): level for level in get_args(LogLevel)}

_VALUE = r'(?:"(?:[^"\\]|\\.)*"|[^\s"]\S*)'
_TEXT = re.compile(rf"(\d{{4}}-\d\d-\d\dT[\d:.]+Z) (debug|info|warning|error) ([\w-]+)((?: \w+={_VALUE})*)$")
_FIELD = re.compile(rf" (\w+)=({_VALUE})")


@contextlib.contextmanager
def writing(fd: int, log_format: LogFormat = "text", level: LogLevel = "info") -> Iterator[None]:
    """
    Write every event of *level* and above to the file descriptor *fd*, and the warnings of all other libraries.

    A line is one write(2). Nothing waits for the reader of a pipe, socket or terminal: lines that do not fit are lost,
    and a later line has their number.

    Events come through `snapshotter.events.sink`, not through `logging`. Replaces the setup of `logging` during the
    ``with``, so only a program may call it.
    """
    formatter = JSONFormatter() if log_format == "json" else TextFormatter()
    with contextlib.ExitStack() as stack:
        log = _Log(_sender(fd, stack), formatter, getattr(logging, level.upper()))
        handler = _Handler(log)
        handler.setFormatter(formatter)
        root = logging.getLogger()
        stack.callback(root.setLevel, root.level)
        stack.callback(setattr, root, "handlers", root.handlers)
        stack.callback(setattr, events, "sink", events.sink)
        root.setLevel(logging.WARNING)
        root.handlers = [handler]
        events.sink = log
        yield


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """
        Return the line of *record*. A record of another library is a ``log`` with a ``message``.
        """
        event = getattr(record, "event", "log")
        fields = dict(record.fields) if hasattr(record, "fields") else {"message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return self.line(_time(int(record.created * 1e9)), record.levelname.lower(), event, fields)

    def line(self, time: str, level: str, event: str, fields: Mapping[str, Any]) -> str:
        """
        Return the line of an event.
        """
        raise NotImplementedError


class TextFormatter(_Formatter):
    """
    Formats an event as ``TIME LEVEL EVENT FIELD=VALUE ...``; see `snapshotter.events.format_event`.
    """

    def line(self, time: str, level: str, event: str, fields: Mapping[str, Any]) -> str:
        return f"{time} {level} {format_event(event, fields)}"


class JSONFormatter(_Formatter):
    """
    Formats an event as one JSON object of time, level, event and the fields.
    """

    def line(self, time: str, level: str, event: str, fields: Mapping[str, Any]) -> str:
        # json.dumps() takes twice as long, because it makes an encoder for each call.
        line = f'{{"time": "{time}", "level": "{level}", "event": "{event}"'
        for name, value in fields.items():
            if value != "":
                line += f', "{name}": {_string(value) if isinstance(value, str) else round(value, 6)}'
        return line + "}"


def _time(nanoseconds: int) -> str:
    """
    Return the time in RFC 3339, in UTC with microseconds.
    """
    digits = str(nanoseconds)
    return f"{_second(digits[:-9])}.{digits[-9:-3]}Z"


@lru_cache(maxsize=2)
def _second(seconds: str) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(int(seconds)))


class _Log:
    """
    The sink that writes each event as a line, and waits for no reader.
    """

    def __init__(self, send: Callable[[bytes], int], formatter: _Formatter, level: int) -> None:
        self.level = level
        self._send = send
        self._formatter = formatter
        self._rest = b""  # the end of a line that was written in part
        self._lost = 0  # the number of lines since the last line with such a number
        self._behind = False  # there is a rest, or a line is lost
        # Reentrant, because the garbage collector may end a task of asyncio here, which then logs a warning.
        self._lock = threading.RLock()

    def take(self, event: Event, fields: Mapping[str, Any], traceback: Exception | None, /) -> None:
        if traceback:
            text = self._formatter.formatException((type(traceback), traceback, traceback.__traceback__))
            fields = {**fields, "traceback": text}
        self.write(self._formatter.line(_time(time.time_ns()), _LEVELS[event.level], event, fields))

    def write(self, line: str) -> None:
        data = f"{line}\n".encode()
        with self._lock:
            try:
                if self._behind:
                    self._catch_up()
                sent = self._send(data)
            except OSError:
                sent = 0  # nobody reads, the reader is gone, or the disk is full
            if sent == len(data):
                return
            self._behind = True
            if sent:
                self._rest = data[sent:]
            else:
                self._lost += 1

    def _catch_up(self) -> None:
        """
        Write what is missing before the next line.

        Raises:
            OSError: It could not be written, or only a part of it.
        """
        while self._rest or self._lost:
            missing = self._rest or self._loss()
            sent = self._send(missing)
            if not self._rest:
                self._lost = 0
            self._rest = missing[sent:]
        self._behind = False

    def _loss(self) -> bytes:
        fields = {"message": f"lines that could not be written: {self._lost}"}
        return f"{self._formatter.line(_time(time.time_ns()), 'warning', 'log', fields)}\n".encode()


class _Handler(logging.Handler):
    """
    Writes the records of other libraries to *log*.
    """

    def __init__(self, log: _Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(self.format(record))


def _sender(fd: int, stack: contextlib.ExitStack) -> Callable[[bytes], int]:
    """
    Return a function that writes to *fd* without waiting, and returns the number of bytes written.

    Args:
        stack: Closes the function's own file descriptors.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        own = stack.enter_context(socket.socket(fileno=os.dup(fd)))
        return lambda data: own.send(data, socket.MSG_DONTWAIT)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        # O_NONBLOCK on *fd* itself would hold for all processes that share it, such as the shell on a terminal.
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            fd = stack.enter_context(owned(os.open(f"/proc/self/fd/{fd}", flags)))
    return partial(os.write, fd)


@dataclass(frozen=True, slots=True)
class Line:
    """
    A parsed line of the log.

    Args:
        time: The time as written: RFC 3339, in UTC.
        fields: Fields of `snapshotter.events.Fields`; in the text format, all values are strings.
    """

    time: str
    level: str
    event: str
    fields: dict[str, Any]


def parse(text: str) -> Line | None:
    """
    Return the event of a line, or None if the line has no event.
    """
    if match := _TEXT.search(text):
        fields = {name: json.loads(value) if value[0] == '"' else value for name, value in _FIELD.findall(match[4])}
        return Line(match[1], match[2], match[3], fields)
    try:
        fields = json.loads(text[text.index("{") :])
        return Line(fields.pop("time"), fields.pop("level"), fields.pop("event"), fields)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def of_key(lines: Iterable[Line], key: str) -> Iterator[Line]:
    """
    Yield the lines about snapshots that have *key* or had it.

    A snapshot is followed by its id, because a commit changes its key, and ``destroyed`` has no key.
    """
    ids = set()
    for line in lines:
        snapshot_id = str(line.fields.get("id", ""))
        if key in (line.fields.get("key"), line.fields.get("source")):
            ids.add(snapshot_id)
            yield line
        elif snapshot_id and snapshot_id in ids:
            yield line


def of_trace(lines: Iterable[Line], identifier: str) -> Iterator[Line]:
    """
    Yield the lines of calls whose trace or span has the id *identifier*.
    """
    return (line for line in lines if identifier in (line.fields.get("trace"), line.fields.get("span")))


def read(path: str, *, follow: bool = False) -> Iterator[str]:
    """
    Yield the lines of a log. With *follow*, wait for more lines forever, also of the next file after a rotation.
    """
    while True:
        with open(path, encoding="utf-8", errors="replace") as file:
            yield from _lines(file, path, follow=follow)
        if not follow:
            return


def _lines(file: TextIO, path: str, *, follow: bool) -> Iterator[str]:
    begun = ""  # a line without its end
    while True:
        for piece in file:
            begun += piece
            if begun.endswith("\n"):
                yield begun
                begun = ""  # a line without its end
        if not follow or _is_over(file, path):
            if begun:
                yield begun
            return
        time.sleep(POLL_SECONDS)


def _is_over(file: TextIO, path: str) -> bool:
    """
    Return whether *path* now leads to another file, or *file* was truncated.
    """
    own = os.fstat(file.fileno())
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False  # in the middle of a rotation
    return (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino) or own.st_size < file.tell()
