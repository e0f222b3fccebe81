"""Checks a document against the part of JSON Schema that docs/status-schema.json uses."""

from __future__ import annotations

from typing import Any

KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
KNOWN = {"$schema", "$defs", "$ref", "title", "description", "type", "const", "enum", "anyOf", "minimum",
         "maximum", "items", "properties", "required"}  # fmt: skip


def problems(value: Any, schema: dict[str, Any]) -> list[str]:
    """Return what is wrong with *value*, each with its path; a keyword that is not known here is an error too."""
    return _check(value, schema, schema["$defs"], "$")


def _check(value: Any, schema: dict[str, Any], defs: dict[str, Any], path: str) -> list[str]:
    assert schema.keys() <= KNOWN, f"this checker does not know {schema.keys() - KNOWN}"
    if "$ref" in schema:
        return _check(value, defs[schema["$ref"].removeprefix("#/$defs/")], defs, path)
    if "anyOf" in schema:
        tried = [_check(value, option, defs, path) for option in schema["anyOf"]]
        return [] if [] in tried else [problem for problems in tried for problem in problems]
    found = [*_plain(value, schema, path)]
    if isinstance(value, dict):
        found += [f"{path}: lacks {name}" for name in schema.get("required", ()) if name not in value]
        for name, part in schema.get("properties", {}).items():
            found += _check(value[name], part, defs, f"{path}.{name}") if name in value else []
    if isinstance(value, list):
        for n, item in enumerate(value):
            found += _check(item, schema.get("items", {}), defs, f"{path}[{n}]")
    return found


def _plain(value: Any, schema: dict[str, Any], path: str) -> list[str]:
    found = []
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is(value, name) for name in names):
            found.append(f"{path}: {value!r} is not {names}")
    if "const" in schema and value != schema["const"]:
        found.append(f"{path}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: {value!r} is not one of {schema['enum']}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{path}: {value!r} is out of bounds")
    return found


def _is(value: Any, name: str) -> bool:
    return isinstance(value, KINDS[name]) and (name == "boolean" or not isinstance(value, bool))
