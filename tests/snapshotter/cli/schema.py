"""
Whether JSON that the command printed is what it promises.
"""

import json
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA = json.loads(resources.files("snapshotter.cli").joinpath("schema.json").read_text())


def _closed(schema: Any) -> Any:
    """
    *schema* with no members but those that it names.
    """
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        name: {member: _closed(each) for member, each in value.items()} if name == "properties" else _closed(value)
        for name, value in schema.items()
    }
    return closed | ({"unevaluatedProperties": False} if {"properties", "$ref"} & schema.keys() else {})


def _definition(schema: dict[str, Any]) -> dict[str, Any]:
    """
    The same, but for itself: others may add to it.
    """
    closed: dict[str, Any] = _closed(schema)
    closed.pop("unevaluatedProperties", None)
    return closed


_DEFINITIONS = {name: _definition(schema) for name, schema in SCHEMA["$defs"].items()}


def check(command: str, printed: str) -> None:
    """
    Raise what is wrong with the JSON that *command* printed, and when it has a member that the schema does not name.
    """
    schema = {"$defs": _DEFINITIONS, "$ref": f"#/$defs/{command}", "unevaluatedProperties": False}
    for document in printed.splitlines() if command == "events" else [printed]:
        Draft202012Validator(schema).validate(json.loads(document))
