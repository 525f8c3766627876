"""
The types of public names.
"""

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

import pybtrfs

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(pybtrfs.__path__, "pybtrfs.")
    if not name.rpartition(".")[2].startswith("_") and not name.startswith("pybtrfs.cli")
]


def public(module: str) -> Iterator[tuple[str, Any]]:
    """
    Yield the functions of a module and the methods of its classes.
    """
    for name, value in vars(import_module(module)).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for method, member in vars(value).items():
                found = (
                    member.fget if isinstance(member, property) else inspect.unwrap(getattr(member, "__func__", member))
                )
                if inspect.isfunction(found) and not method.startswith("_") and found.__module__ == module:
                    yield f"{name}.{method}", found


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_is_annotated(module: str) -> None:
    """
    Every parameter and result of a public function is annotated, and not with Any.
    """
    for name, function in public(module):
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
        annotations = [parameter.annotation for parameter in parameters] + [
            inspect.signature(function).return_annotation
        ]
        assert inspect.Signature.empty not in annotations, name
        assert not any("Any" in str(annotation) for annotation in annotations), name


@pytest.mark.parametrize("module", MODULES)
def test_every_generator_can_be_closed(module: str) -> None:
    """
    A public function that yields is annotated as a Generator, so that type checkers accept `contextlib.closing`.
    """
    for name, function in public(module):
        if inspect.isgeneratorfunction(function) and not function.__name__.startswith("_"):
            assert str(inspect.signature(function).return_annotation).startswith(("Generator[", "collections.abc.G")), (
                name
            )


def test_it_finds_what_there_is() -> None:
    """
    The functions and methods of the areas are among the checked names.
    """
    found = {f"{module}.{name}" for module in MODULES for name, _ in public(module)}
    assert {
        "pybtrfs.subvolume.info.get_info",
        "pybtrfs.ioctl.filesystem.sync",
        "pybtrfs.subvolume.creation.Batch.create",
    } <= found
    assert len(found) > 150
