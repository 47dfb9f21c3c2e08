"""ComfyUI's graphs: the texts that condition the samplers on their positive side.

An API graph is {node id: {"class_type": …, "inputs": {name: value or link}}}, a link [node id, output]. A
workflow is what the editor saves: nodes with widgets, links in a list, subgraphs among its definitions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeGuard

from m3agiqa.image_metadata.json_values import member, text_member

_TEXT_INPUT = re.compile(
    r"(?:populated_|wildcard_)?(?:text|string|prompt|value|t5xxl|clip_[lg])(?:_?[a-z]|_?\d+|_positive|_negative)?"
)
_PASS_ON = re.compile(r"conditioning\w*|any_?\d*|input\d*|")  # combine, area, switch and reroute nodes
_TEXT_NODE = re.compile(r"text|string|prompt|primitive|wildcard", re.IGNORECASE)
_SAMPLER_NODE = re.compile(r"sampler|guider", re.IGNORECASE)
_SHOW_NODE = re.compile(r"show|display|preview", re.IGNORECASE)
# Nodes that write texts by a language model or from an image. What goes into them is an instruction, and what
# comes out is not in the file unless another node shows it. (TextEncodeQwenImage and the like are encoders.)
_WRITER_NODE = re.compile(
    r"^(?!.*encode).*(?:llm|gpt|ollama|gemini|claude|llama|qwen|mistral|deepseek|groq|vlm|florence|caption|tagger|interrogat)",
    re.IGNORECASE,
)
_WILDCARD_NODE = re.compile(r"wildcard|^DP[A-Z]|random.?prompt", re.IGNORECASE)
_WILDCARD_PATTERN = re.compile(r"\{[^{}]*\|[^{}]*\}|__[\w/*-]+__")  # {this|that} and __file of choices__

MAX_SUBGRAPH_DEPTH = 20


def prompt_of_graph(graph: object) -> str | None:
    """The positive prompt of an API graph; None if there is none."""
    if not isinstance(graph, dict):
        return None
    positive, _ = _conditioning(graph, "positive")
    if positive:
        return ", ".join(positive)
    _, negative = _conditioning(graph, "negative")
    loose = [
        value
        for node_id, node in graph.items()
        if node_id not in negative and "TextEncode" in (text_member(node, "class_type") or "")
        for name, value in _inputs(node).items()
        if isinstance(value, str) and "negative" not in name
    ]
    return max(loose, key=len, default=None)


def prompt_of_workflow(workflow: object) -> str | None:
    """The positive prompt of a workflow; None if there is none."""
    subgraphs = {
        text_member(subgraph, "id") or "": subgraph
        for subgraph in _items(member(member(workflow, "definitions"), "subgraphs"))
    }
    return prompt_of_graph(dict(_flattened(workflow, subgraphs)))


# --- following links -------------------------------------------------------------------------------


def _conditioning(graph: Mapping[str, object], side: str) -> tuple[list[str], set[str]]:
    """The texts that reach the samplers on the positive or the negative side, and the nodes on the way."""
    walk = _Walk(graph, side)
    texts: list[str] = []
    for node in graph.values():
        if _SAMPLER_NODE.search(text_member(node, "class_type") or ""):
            for name in (side, "conditioning") if side == "positive" else (side,):
                texts += walk.follow(_inputs(node).get(name))
    return list(dict.fromkeys(text for text in texts if text.strip())), walk.seen


class _Walk:
    """Follows links from a sampler back to the texts that it was conditioned on."""

    MAX_DEPTH = 100
    MAX_DELIMITER = 10  # characters

    def __init__(self, graph: Mapping[str, object], side: str) -> None:
        self.graph = graph
        self.side = side
        self.other = "negative" if side == "positive" else "positive"
        self.seen: set[str] = set()

    def follow(self, value: object, depth: int = 0) -> list[str]:
        """The texts behind an input: itself, or what the node that it links to says."""
        if isinstance(value, str):
            return [value]
        if not _is_link(value) or depth > self.MAX_DEPTH:
            return []
        node_id = str(value[0])
        if node_id in self.seen:
            return []
        self.seen.add(node_id)
        node = self.graph.get(node_id)
        kind, inputs = text_member(node, "class_type") or "", _inputs(node)
        if _WRITER_NODE.search(kind) or _SHOW_NODE.search(kind):
            shown = self._shown_texts(node_id)
            if shown or _WRITER_NODE.search(kind):
                return shown[:1]
        texts = list(self._texts(inputs, depth))
        if _WILDCARD_NODE.search(kind):
            texts = [text for text in texts if not _WILDCARD_PATTERN.search(text)]
        delimiter = inputs.get("delimiter")
        if isinstance(delimiter, str) and len(delimiter) <= self.MAX_DELIMITER and texts:
            return [delimiter.join(texts)]
        return texts

    def _texts(self, inputs: Mapping[str, object], depth: int) -> Iterator[str]:
        populated = {name: text for name, text in inputs.items() if name.startswith("populated_") and text}
        for name, value in (populated or inputs).items():
            if self.other in name:
                continue
            if name == self.side or _PASS_ON.fullmatch(name) or _TEXT_INPUT.fullmatch(name):
                yield from self.follow(value, depth + 1)

    def _shown_texts(self, node_id: str) -> list[str]:
        """What a node that shows texts has kept, where it is this one or takes what this one writes."""
        return [
            text
            for other_id, node in self.graph.items()
            if _SHOW_NODE.search(text_member(node, "class_type") or "")
            and (
                other_id == node_id
                or any(_is_link(v) and str(v[0]) == node_id for v in _inputs(node).values())
            )
            for name, text in _inputs(node).items()
            if isinstance(text, str) and text.strip() and _TEXT_INPUT.fullmatch(name)
        ]


def _is_link(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list) and len(value) == 2


def _inputs(node: object) -> Mapping[str, object]:
    inputs = member(node, "inputs")
    return inputs if isinstance(inputs, dict) else {}


# --- workflows -------------------------------------------------------------------------------------

_SUBGRAPH_INPUT = "-10"  # the ends of a subgraph, as origin and as target of its links
_SUBGRAPH_OUTPUT = "-20"


def _flattened(
    level: object,
    subgraphs: Mapping[str, object],
    prefix: str = "",
    outer: Mapping[str, object] | None = None,
    depth: int = 0,
) -> Iterator[tuple[str, object]]:
    """The nodes of a workflow or subgraph in the shape of an API graph, those of subgraphs as "node:node".

    `outer` is what the subgraph's inputs get, by their names: links or texts.
    """
    nodes = {str(member(node, "id")): node for node in _items(member(level, "nodes"))}
    input_names = [text_member(slot, "name") for slot in _items(member(level, "inputs"))]
    sources: dict[str, object] = {}  # of links
    for link, origin, slot, _, _ in _links(level):
        if origin != _SUBGRAPH_INPUT:
            sources[link] = _origin(nodes, subgraphs, prefix, origin, slot)
        elif slot.isdecimal() and int(slot) < len(input_names) and outer:
            sources[link] = outer.get(input_names[int(slot)] or "")
    for node_id, node in nodes.items():
        kind = text_member(node, "type") or ""
        slots = list(_items(member(node, "inputs")))
        inputs = {
            text_member(slot, "name") or "": source
            for slot in slots
            if (source := sources.get(str(member(slot, "link")))) is not None
        }
        widgets = member(node, "widgets_values")
        values = list(widgets.values() if isinstance(widgets, dict) else _items(widgets))
        if kind in subgraphs and depth < MAX_SUBGRAPH_DEPTH:
            names = [text_member(slot, "name") or "" for slot in slots if member(slot, "widget")]
            typed = {
                name: value for name, value in zip(names, values, strict=False) if isinstance(value, str)
            }
            yield from _flattened(
                subgraphs[kind], subgraphs, f"{prefix}{node_id}:", typed | inputs, depth + 1
            )
            continue
        if _TEXT_NODE.search(kind) and (
            _SHOW_NODE.search(kind) or not any(map(_TEXT_INPUT.fullmatch, inputs))
        ):
            texts = [text for value in values for text in _texts_in(value)]
            populated = _WILDCARD_NODE.search(kind) and len(texts) > 1 and texts[1]
            names = (
                ["wildcard_text", "populated_text"] if populated else [f"text_{i}" for i in range(len(texts))]
            )
            inputs |= dict(zip(names, texts, strict=False))
        yield prefix + node_id, {"class_type": kind, "inputs": inputs}


def _origin(
    nodes: Mapping[str, object], subgraphs: Mapping[str, object], prefix: str, node_id: str, slot: str
) -> list[object]:
    """The link to an output: of a node, or of that one in a subgraph whose output it is."""
    for _ in range(MAX_SUBGRAPH_DEPTH):
        subgraph = subgraphs.get(text_member(nodes.get(node_id), "type") or "")
        inner = [link for link in _links(subgraph) if link[3:] == (_SUBGRAPH_OUTPUT, slot)]
        if not inner:
            break
        prefix += f"{node_id}:"
        nodes = {str(member(node, "id")): node for node in _items(member(subgraph, "nodes"))}
        _, node_id, slot, _, _ = inner[0]
    return [prefix + node_id, slot]


def _links(level: object) -> Iterator[tuple[str, str, str, str, str]]:
    """Link, its origin and the output there, its target and the input there."""
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    for link in _items(member(level, "links")):
        parts = link if isinstance(link, list) else [member(link, name) for name in names]
        if len(parts) >= len(names):
            link_id, origin, slot, target, target_slot = map(str, parts[: len(names)])
            yield link_id, origin, slot, target, target_slot


def _texts_in(value: object) -> list[str]:
    """Of a widget; those of nodes that show texts hold a list."""
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def _items(value: object) -> Iterable[object]:
    return value if isinstance(value, list) else ()
