"""Settings files: YAML into typed dataclasses, with errors that name the line's key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from m3agiqa.errors import InputError

T = TypeVar("T")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping; one named as `base` is read first. Raises InputError."""
    return _read(path, ())


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """With the files that name this one as their base."""
    if path.resolve() in above:
        raise InputError(f"{path} is its own base.")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} needs settings like `name: value`, one a line.")
    if "base" not in found:
        return found
    base = found.pop("base")
    if not isinstance(base, str):
        raise InputError(f"{path}: base is the name of another settings file (found {base!r}).")
    return merged(_read(path.parent / base, (*above, path.resolve())), found)


def build(kind: type[T], settings: Mapping[str, Any], source: object) -> T:
    """An instance of a dataclass, nested ones included; what is left out keeps its default.

    `source` (a file, usually) is named in errors. Raises InputError for an unknown name or a wrong value.
    """
    try:
        made = TypeAdapter(kind).validate_python(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part).endswith("Config"))
        if first["type"] == "missing":
            raise InputError(f"{source}: the setting {where} is missing.") from error
        raise InputError(f"{source}: {where}: {first['msg']} (found {first['input']!r}).") from error
    except InputError as error:  # of a dataclass that checks itself
        raise InputError(f"{source}: {error}") from error
    _check_names(settings, made, source, "")
    return made


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with some settings changed; nested mappings are merged likewise."""
    result = dict(base)
    for name, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if nested else value
    return result


def plain(settings: Any) -> Any:
    """A dataclass as what YAML and JSON can hold, to be read back by `build`."""
    return TypeAdapter(type(settings)).dump_python(settings, mode="json")


def _check_names(given: Mapping[str, Any], made: Any, source: object, place: str) -> None:
    known = asdict(made)
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."
            raise InputError(f"{source}: there is no setting {place}{name}; {hint}")
        if isinstance(value, Mapping) and is_dataclass(getattr(made, name)):
            _check_names(value, getattr(made, name), source, f"{place}{name}.")
