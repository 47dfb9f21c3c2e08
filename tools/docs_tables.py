"""Writes the tables of settings in docs/ from the dataclasses: `python tools/docs_tables.py`

A table stands between `<!-- settings: MODULE.CLASS, without NAME … -->` and `<!-- end -->`; names of nested
dataclasses have dots. With `variables` instead of `settings` the names are those of environment
variables, with which a field's text begins.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(<!-- (settings|variables): ([\w.]+)\.(\w+)(?:, without ([\w. ]+))? -->\n).*?(?=<!-- end -->)", re.S
)
VARIABLE = re.compile(r"([A-Z0-9_]+)(?:=\d)?: (.*)")


def with_tables(text: str) -> str:
    """A document with all of its tables as the dataclasses are now."""
    return BLOCK.sub(_block, text)


def _block(block: re.Match[str]) -> str:
    kind = getattr(import_module(block[3]), block[4])
    rows = _settings(kind, (block[5] or "").split()) if block[2] == "settings" else _variables(kind)
    head = f"| {block[2].removesuffix('s')} | default | what |\n|---|---|---|\n"
    return block[1] + head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _settings(kind: type, left_out: list[str], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    texts, types = _field_texts(kind), get_type_hints(kind)
    for field in fields(kind):
        name = prefix + field.name
        if name in left_out:
            continue
        nested = next((t for t in (types[field.name], *get_args(types[field.name])) if is_dataclass(t)), None)
        first_sentence = re.split(r"(?<=\.)\s", texts.get(field.name, ""))[0]
        yield f"`{name}`", "" if nested and field.default is MISSING else _default(field), first_sentence
        if nested and field.name != "transfer":  # which has the settings of `fit` once more
            yield from _settings(nested, left_out, f"{name}.")


def _variables(kind: type) -> Iterator[tuple[str, str, str]]:
    texts = _field_texts(kind)
    for field in fields(kind):
        name, text = VARIABLE.fullmatch(texts[field.name]).groups()
        yield f"`{name}`", _default(field), text


def _field_texts(kind: type) -> dict[str, str]:
    """What stands below each field, in one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    texts = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            texts[field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return texts


def _default(field: Field[Any]) -> str:
    if field.default is MISSING:
        return "" if field.default_factory is MISSING else _text(field.default_factory())
    return _text(field.default)


def _text(value: Any) -> str:
    if value is None or value == "" or value == frozenset():
        return "" if value is not None else "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for path in sorted((ROOT / "docs").glob("*.md")):
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
