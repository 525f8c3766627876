"""
The English of src: openings and length of sentences, and the word "what". The openings hold for tests and tools, too.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"

# A sentence that begins with such a word has a clause or a pronoun where its subject or its verb belongs.
FORBIDDEN = {"How", "Of", "One", "That", "Those", "What", "Which", "Whose"}
MOST_WHATS = 5  # in 1,000 lines
MOST_WORDS = 25  # in a sentence

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")
ENTRY = re.compile(r" {4}[\w*, .]+: ")
BULLET = re.compile(r"\s*(- |\d+\. )")
LITERAL_BLOCK = re.compile(r"::\n(?:\n| .*\n?)+")
END_OF_SENTENCE = re.compile(r"(?<=[.?!])\s+")
C_TEXT = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def docstrings(source: str) -> Iterator[str]:
    """
    Yield the docstrings of *source*, and the strings below its constants.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield cleandoc(node.value.value)


def sentences(docstring: str) -> Iterator[str]:
    """
    Yield the sentences of *docstring*; each entry of a section, each bullet and each paragraph begins one.
    """
    text = ""
    in_section = False
    for line in [*LITERAL_BLOCK.sub("\n\n", docstring).splitlines(), ""]:
        in_section = bool(SECTION.match(line)) or (in_section and (not line or line.startswith(" ")))
        start = ENTRY.match(line) if in_section else BULLET.match(line)
        if start or not line.strip() or SECTION.match(line):
            yield from filter(None, END_OF_SENTENCE.split(text.strip()))
            text = ""
        if not SECTION.match(line):
            text += f" {line[start.end() if start else 0 :].strip()}"


def bad_openings(docstring: str) -> list[str]:
    """
    Return the sentences of *docstring* that begin with a forbidden word.
    """
    return [sentence for sentence in sentences(docstring) if re.split(r"\W", sentence, maxsplit=1)[0] in FORBIDDEN]


def long_sentences(docstring: str) -> list[str]:
    """
    Return the sentences of *docstring* that have too many words.
    """
    return [
        sentence
        for sentence in sentences(docstring)
        if sum(any(map(str.isalnum, word)) for word in sentence.split()) > MOST_WORDS
    ]


def texts(path: Path) -> Iterator[str]:
    """
    Yield the comments and string literals of a file of Python or C.
    """
    source = path.read_text()
    if path.suffix in {".c", ".h"}:
        yield from C_TEXT.findall(source)
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def whats(path: Path) -> int:
    """
    Return how often the word stands in the comments and string literals of a file.
    """
    return sum(len(re.findall(r"\bwhat\b", text, re.IGNORECASE)) for text in texts(path))


def files(*suffixes: str) -> list[Path]:
    """
    Return the files of src with one of *suffixes*, without the generated ones.
    """
    generated = re.compile(r"_pb2\.pyi?$")
    found = (path for suffix in suffixes for path in SRC.rglob(f"*{suffix}"))
    return sorted(path for path in found if not generated.search(path.name))


PYTHON = [pytest.param(path, id=str(path.relative_to(SRC))) for path in files(".py", ".pyi")]
OTHER = [
    pytest.param(path, id=str(path.relative_to(ROOT)))
    for folder in ("benchmarks", "tests", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", PYTHON + OTHER)
def test_openings_of_sentences(path: Path) -> None:
    """
    No sentence of a docstring begins with a question clause or a pronoun.
    """
    assert [bad for docstring in docstrings(path.read_text()) for bad in bad_openings(docstring)] == []


@pytest.mark.parametrize("path", PYTHON)
def test_length_of_sentences(path: Path) -> None:
    """
    No sentence of a docstring has more than 25 words.
    """
    assert [bad for docstring in docstrings(path.read_text()) for bad in long_sentences(docstring)] == []


def test_what_is_rare() -> None:
    """
    In 1,000 lines the word stands at most 5 times.
    """
    lines, counts = 0, {}
    for path in files(".py", ".pyi", ".c", ".h"):
        lines += len(path.read_text().splitlines())
        counts[str(path.relative_to(SRC))] = whats(path)
    most = sorted(counts.items(), key=lambda count: -count[1])[:10]
    assert sum(counts.values()) * 1000 <= MOST_WHATS * lines, most


@pytest.mark.parametrize(
    ("docstring", "found"),
    [
        ("Return the owner.", []),
        ("What it holds.", ["What it holds."]),
        ("Return it. Those of the parent\ncount. End.", ["Those of the parent count."]),
        ("Return it.\n\nOf two, the first.", ["Of two, the first."]),
        ("Do it.\n\nArgs:\n    name: The name.\n    other: That of the parent.", ["That of the parent."]),
        ("Do it.\n\nRaises:\n    OSError: The kernel\n        refuses. One is enough.", ["One is enough."]),
        ("Steps:\n\n- How it begins\n- the end", ["How it begins"]),
        ("Howl. Offer. Onerous.", []),
        ("The record: what it holds.", []),
        ("`What` is a name. *Which* too.", []),
    ],
)
def test_bad_openings_are_found(docstring: str, found: list[str]) -> None:
    """
    The check of openings finds each sentence that has one, and no other.
    """
    assert bad_openings(docstring) == found


@pytest.mark.parametrize(
    ("docstring", "found"),
    [
        (f"Return {'the ' * 24}.", 0),
        (f"Return {'the ' * 25}.", 1),
        (f"Return{' the' * 13}. Return{' - it' * 13}.", 0),
        (f"Return::\n\n    {'the ' * 30}\n\nEnd.", 0),
        (f"Return::\n\n    the\n\nEnd {'the ' * 30}.", 1),
        (f"Do it.\n\nRaises:\n    OSError: {'the ' * 10}\n        {'the ' * 20}", 1),
        (f"Steps:\n\n- {'the ' * 20}\n- {'the ' * 20}", 0),
    ],
)
def test_long_sentences_are_found(docstring: str, found: int) -> None:
    """
    The check of lengths counts words over the lines of a sentence, and leaves out literal blocks.
    """
    assert len(long_sentences(docstring)) == found


@pytest.mark.parametrize(
    ("name", "source", "count"),
    [
        ("a.py", '"""\nWhat it is.\n"""\nwhat = f"what {what}"  # what?\n', 3),
        ("a.pyi", "somewhat: int  # whatever\n", 0),
        ("a.c", '/* What\n * what */ int what; // what\nchar *text = "what \\" what";\n', 5),
    ],
)
def test_whats_are_counted(tmp_path: Path, name: str, source: str, count: int) -> None:
    """
    The word counts in comments and string literals, and as a whole word only.
    """
    (tmp_path / name).write_text(source)
    assert whats(tmp_path / name) == count
