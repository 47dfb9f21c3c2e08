"""Writes the tables in docs/ that follow from the code: `python tools/docs_tables.py`

A table stands between `<!-- KIND: MODULE.NAME -->` and `<!-- end -->`. Its kind is `variables` (a dataclass
whose fields are explained by an environment variable and a text), `stages` (of a run) or `prompts` (where
generators write them).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from training.config import default_text, field_docs  # noqa: E402

BLOCK = re.compile(r"(<!-- (\w+): ([\w.]+)\.(\w+) -->\n).*?(?=<!-- end -->)", re.S)
VARIABLE = re.compile(r"([A-Z0-9_]+(?:=\d)?): (.*)")


def with_tables(text: str) -> str:
    """A document with all of its tables as the code is now."""
    return BLOCK.sub(_block, text)


def _block(block: re.Match[str]) -> str:
    described = getattr(import_module(block[3]), block[4])
    rows = {
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


def _variables(kind: type) -> Iterator[tuple[str, str, str]]:
    texts = field_docs(kind)
    for field in fields(kind):
        name, text = VARIABLE.fullmatch(texts[field.name]).groups()
        yield (
            f"`{name}`",
            str(int(field.default)) if isinstance(field.default, bool) else default_text(field),
            text,
        )


if __name__ == "__main__":
    for path in sorted((ROOT / "docs").glob("*.md")):
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
