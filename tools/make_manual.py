"""
Write the man pages and shell completions of both commands from their parsers.

    python tools/make_manual.py DIRECTORY

shtab writes the completions. The man pages are written here, because argparse-manpage drops the examples of commands
and repeats the shared options for each command.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import shtab

import pybtrfs.cli.main
import snapshotter.cli
from pybtrfs._version import __version__

COMPLETIONS = {
    "bash": "bash-completion/completions/{}",
    "zsh": "zsh/site-functions/_{}",
    "fish": "fish/vendor_completions.d/{}.fish",
}

# List only keys that are plain words. Keys come from anywhere, and bash would execute command substitutions in them.
LIST_KEYS = "snapshotter ls --columns=key 2>/dev/null | sed 1d | grep '^[[:alnum:]._/:@+-]*$'"
# Keys contain colons, and bash by default splits words at colons.
BASH = f"""\
COMP_WORDBREAKS=${{COMP_WORDBREAKS//:}}
_snapshotter_keys() {{
  compgen -W "$({LIST_KEYS})" -- "$1"
}}"""
ZSH = f"""\
_snapshotter_keys() {{
  compadd -- ${{(f)"$({LIST_KEYS})"}}
}}"""
FISH = f"""\
function _snapshotter_keys
  {LIST_KEYS}
end"""
KEYS = {
    "bash": "_snapshotter_keys",
    "zsh": "_snapshotter_keys",
    "fish": "(_snapshotter_keys)",
    "preamble": {"bash": BASH, "zsh": ZSH, "fish": FISH},
}
BY_METAVAR = {
    **dict.fromkeys(("KEY", "OTHER", "PARENT"), KEYS),
    **dict.fromkeys(("FILE", "PATH", "SOCKET", "SOURCE", "DEST"), shtab.FILE),
    **dict.fromkeys(("DIR", "TARGET"), shtab.DIR),
}


def main(target: Path) -> None:
    """
    Write all files below *target*, at the paths where they are installed.
    """
    for parser in pybtrfs.cli.main.parser(), snapshotter.cli.parser():
        files = {f"man/man1/{parser.prog}.1": "\n".join(page(parser)) + "\n"}
        for command in commands(parser):
            for action in command._actions:
                if action.metavar in BY_METAVAR:
                    action.complete = BY_METAVAR[action.metavar]  # type: ignore[attr-defined]  # where shtab looks
        for shell, path in COMPLETIONS.items():
            files[path.format(parser.prog)] = shtab.complete(parser, shell) + "\n"
        for path, text in files.items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_text(text)


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """
    Yield *parser* and the parsers of all commands below it.
    """
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from commands(below)


def page(whole: argparse.ArgumentParser) -> Iterator[str]:
    """
    Yield the lines of the man page, in the language of man(7).
    """
    description = str(whole.description)
    everywhere = {action.dest for action in whole._actions}
    yield f'.TH {whole.prog.upper()} 1 "" "btrfs-snapshotter {__version__}"'
    yield ".ad l"
    yield ".SH NAME"
    yield rf"{whole.prog} \- {plain(description[0].lower() + description[1:].rstrip('.'))}"
    yield ".SH SYNOPSIS"
    yield synopsis(whole.prog, whole._actions)
    yield ".SH DESCRIPTION"
    yield plain(description)
    yield from described(whole, whole._actions)
    yield ".SH COMMANDS"
    for command in commands(whole):
        if command.get_default("run"):
            own = [action for action in command._actions if action.dest not in everywhere]
            yield f".SS {plain(command.prog.removeprefix(whole.prog + ' '))}"
            yield synopsis(command.prog, own)
            yield ".PP"
            yield plain(str(command.description))
            yield from described(command, own)
            if command.epilog:
                yield from [".PP", "Example:", ".PP", *verbatim(command.epilog.partition(": ")[2])]
    for heading, lines in re.findall(r"^(\S.*):\n((?: .*\n?)+)", whole.epilog or "", re.MULTILINE):
        yield f".SH {heading.upper()}"
        yield from verbatim(lines)


def synopsis(prog: str, actions: Iterable[argparse.Action]) -> str:
    options, operands = [], []
    for action in actions:
        if action.option_strings:
            repeated = " ..." if isinstance(action, argparse._AppendAction) else ""
            # \% prevents a line break inside an option.
            options.append(rf"\%[{invocation(action, action.option_strings[:1])}{repeated}]")
        else:
            operands.append(invocation(action))
    return " ".join([bold(prog), *options, *operands])


def invocation(action: argparse.Action, options: Sequence[str] = ()) -> str:
    """
    Return the syntax of *action*, with all of *options*.
    """
    given = ", ".join(map(bold, options))
    if action.nargs == 0:
        return given
    choices = "|".join(bold(str(choice)) for choice in action.choices or [])
    value = choices if choices and not action.metavar else italic(str(action.metavar or action.dest.upper()))
    counted = {"?": f"[{value}]", "*": f"[{value} ...]", "+": f"{value} ...", argparse.PARSER: f"{value} ..."}
    return f"{given} {counted.get(str(action.nargs), value)}".lstrip()


def described(parser: argparse.ArgumentParser, actions: Iterable[argparse.Action]) -> Iterator[str]:
    for action in actions:
        if action.help:
            yield ".TP"
            yield invocation(action, action.option_strings)
            yield plain(parser._get_formatter()._expand_help(action))


def verbatim(text: str) -> list[str]:
    return [".EX", *map(plain, text.splitlines()), ".EE"]


def plain(text: str) -> str:
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


def bold(text: str) -> str:
    return rf"\fB{plain(text)}\fR"


def italic(text: str) -> str:
    return rf"\fI{plain(text)}\fR"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
