"""Reads params.yaml and dvc.yaml, and checks sections of parameters against their schemas."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import Problems, UserError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats (PyYAML reads 1e-3 as a string) and an error for a key given twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float):
            raise yaml.constructor.ConstructorError(
                "while reading a mapping", node.start_mark, "a key must be plain text", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                "while reading a mapping", node.start_mark, f"key {key!r} stands twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: when the file is missing, is not YAML, holds a key twice or is not a mapping.
    """
    try:
        content = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the project's root folder") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; expected a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable as YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: got {type(content).__name__}, expected a mapping of sections")
    return content


def check_sections(
    content: Mapping[str, Any],
    schemas: Mapping[str, type[BaseModel] | type[int]],
    known: Iterable[str],
    source: str,
) -> None:
    """Check every section that has a schema, and that no section is missing or unknown.

    Args:
        content: the whole of params.yaml.
        schemas: section name → schema (a pydantic model, or `int` for a plain number).
        known: all section names that may stand in the file.
        source: the file's name, for messages.

    Raises:
        UserError: with every problem of the file at once.
    """
    problems = Problems(f"{source} is not valid")
    known = list(known)
    for section in content:
        if section not in known:
            problems.add(f"{section}: unknown section{_did_you_mean(str(section), known)}")
    for section, schema in schemas.items():
        if section not in content:
            problems.add(f"{section}: this section is missing")
            continue
        for message in section_problems(section, content[section], schema):
            problems.add(message)
    problems.raise_if_any()


def section_problems(section: str, value: Any, schema: type[BaseModel] | type[int]) -> list[str]:
    """Say what is wrong with one section, one line per problem; an empty list when nothing is."""
    if schema is int:
        good = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        return [] if good else [f"{section}: got {value!r}, expected a whole number from 0"]
    assert issubclass(schema, BaseModel)
    try:
        schema.model_validate(value)
    except ValidationError as error:
        return _describe_all(section, error.errors(include_url=False), schema)
    return []


def _describe_all(section: str, details: Iterable[Any], schema: type[BaseModel]) -> list[str]:
    """Give one line per key: a union of types reports one error for each of its members."""
    got: dict[str, str] = {}
    expected: dict[str, list[str]] = {}
    for detail in details:
        location = _key_location(detail["loc"], schema)
        key = ".".join([section, *(str(part) for part in location)])
        if detail["type"] == "extra_forbidden":
            names = _fields_at(schema, location[:-1])
            got[key], message = "", f"unknown key{_did_you_mean(str(location[-1]), names)}"
        elif detail["type"] == "missing":
            got[key], message = "", "this key is missing"
        else:
            # A rule about a whole section names the keys itself; showing the section would bury it.
            got[key] = "" if isinstance(detail["input"], dict) else f"got {detail['input']!r}; "
            message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
        expected.setdefault(key, []).append(message)
    return [f"{key}: {got[key]}{', or '.join(expected[key])}" for key in expected]


def _key_location(location: Iterable[Any], schema: type[BaseModel]) -> tuple[Any, ...]:
    """Cut what pydantic adds behind a key: the name of the tried member of a union."""
    key: list[Any] = []
    names: list[str] | None = list(schema.model_fields)
    for part in location:
        if names is None and not isinstance(part, int):
            break
        key.append(part)
        names = _fields_at(schema, key) or None
    return tuple(key)


def _fields_at(schema: type[BaseModel], location: Iterable[Any]) -> list[str]:
    """Name the fields of the model that stands at `location` inside `schema`."""
    for part in location:
        field = schema.model_fields.get(str(part))
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            return []
        schema = field.annotation
    return list(schema.model_fields)


def _did_you_mean(word: str, names: Iterable[str]) -> str:
    names = list(names)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; expected one of {', '.join(names)}" if names else ""
