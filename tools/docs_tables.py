"""Writes the tables in docs/ that follow from the code: `python tools/docs_tables.py`

A table stands between `<!-- KIND: MODULE.NAME, without FIELD … -->` and `<!-- end -->`. Its kind is
`settings` (a dataclass; nested ones have dots, unless they are among the fields left out), `variables` (a
dataclass whose fields are explained by an environment variable and a text), `stages` (of a run) or `prompts`
(where generators write them).
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- (\w+): ([\w.]+)\.(\w+)(?:, without ([\w ]+))? -->\n).*?(?=<!-- end -->)", re.S)
VARIABLE = re.compile(r"([A-Z0-9_]+(?:=\d)?): (.*)")


def with_tables(text: str) -> str:
    """A document with all of its tables as the code is now."""
    return BLOCK.sub(_block, text)


def _block(block: re.Match[str]) -> str:
    described, without = getattr(import_module(block[3]), block[4]), (block[5] or "").split()
    rows = {
        "settings": lambda: [("setting", "default", "what"), *_settings(described, without)],
        "variables": lambda: [("variable", "default", "what"), *_variables(described)],
        "prompts": lambda: [("generator", "PNG text", "elsewhere"), *_prompts(described)],
        "stages": lambda: [("stage", "what it does", "leaves"), *_stages(described)],
    }[block[2]]()
    rows.insert(1, ("---",) * 3)
    return block[1] + "".join(f"|{'|'.join(row)}|\n" for row in rows)


def _prompts(sources: Iterable[Any]) -> Iterator[tuple[str, str, str]]:
    keys: dict[str, dict[bool, list[str]]] = {}
    for source in sources:
        in_png_text = source.place == "PNG text"
        key = f"`{source.key}`" if in_png_text else f"{source.key} ({source.place})"
        keys.setdefault(source.generator, {True: [], False: []})[in_png_text].append(key)
    for generator, places in keys.items():
        yield generator, ", ".join(places[True]), ", ".join(places[False])


def _stages(stages: Iterable[Any]) -> Iterator[tuple[str, str, str]]:
    for stage in stages:
        yield f"`{stage.name}`", stage.summary, ", ".join(f"`{file}`" for file in stage.makes.split(", "))


def _settings(kind: type, without: list[str], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    texts, types = _field_texts(kind), get_type_hints(kind)
    for field in fields(kind):
        name = prefix + field.name
        choices = (types[field.name], *get_args(types[field.name]))
        nested = next((choice for choice in choices if is_dataclass(choice)), None)
        first_sentence = re.split(r"(?<=\.)\s(?=[A-Z])", texts.get(field.name, ""))[0]
        default = "" if nested and field.default is MISSING else _default(field)
        if default or first_sentence:
            yield f"`{name}`", default, first_sentence
        if nested and field.name not in without:
            yield from _settings(nested, without, f"{name}.")


def _variables(kind: type) -> Iterator[tuple[str, str, str]]:
    texts = _field_texts(kind)
    for field in fields(kind):
        name, text = VARIABLE.fullmatch(texts[field.name]).groups()
        yield (
            f"`{name}`",
            str(int(field.default)) if isinstance(field.default, bool) else _default(field),
            text,
        )


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
