"""The prompt that an image generator wrote into its image file.

What stands in a file is untrusted: anything malformed counts as "no prompt", never as an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from PIL import ExifTags, Image

from m3agiqa.assessor import MAX_PROMPT
from m3agiqa.images import ImageSource, opened

MAX_METADATA = 8_000_000  # characters of one text field; ComfyUI's largest graphs have about a million


@dataclass(frozen=True)
class EmbeddedPrompt:
    """A prompt found in an image file, and where, in words for people."""

    text: str
    origin: str


def find_prompt(source: ImageSource) -> EmbeddedPrompt | None:
    """The prompt that the file carries, or None. Nothing is decoded but the file's metadata."""
    texts, exif = _metadata(source)
    for fields, readers in ((texts, _PNG_READERS), (exif, _EXIF_READERS)):
        for key, origin, read in readers:
            text = _clean(read(fields[key], fields)) if key in fields else ""
            if len(text) > MAX_PROMPT:
                return EmbeddedPrompt(text[:MAX_PROMPT], f"{origin}, its first {MAX_PROMPT:,} characters")
            if text:
                return EmbeddedPrompt(text, origin)
    return None


Fields = Mapping[str, str]
Reader = Callable[[str, Fields], str | None]


def _metadata(source: ImageSource) -> tuple[Fields, Fields]:
    """Text chunks and EXIF texts of a file, by name."""
    try:
        with opened(source) as image:
            texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            return _short(texts), _short(_exif_texts(image))
    except Exception:  # damaged metadata makes the decoders raise all kinds of errors
        return {}, {}


def _short(fields: Fields) -> Fields:
    return {key: text for key, text in fields.items() if len(text) <= MAX_METADATA}


def _exif_texts(image: Image.Image) -> Fields:
    exif = Image.Image.getexif(image)  # PNG files' own method would decode all pixels first
    values = {
        "UserComment": exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment),
        "ImageDescription": exif.get(ExifTags.Base.ImageDescription),
        "Model": exif.get(ExifTags.Base.Model),
        "Make": exif.get(ExifTags.Base.Make),
    }
    return {key: _decode(value) for key, value in values.items() if isinstance(value, str | bytes)}


def _decode(value: str | bytes) -> str:
    """EXIF text; a UserComment begins with eight bytes that name its encoding."""
    if isinstance(value, str):
        return value
    code, text = value[:8], value[8:]
    if code == b"UNICODE\0":
        if text.startswith((b"\xff\xfe", b"\xfe\xff")):
            return text.decode("utf-16", errors="replace")
        # The standard leaves the byte order open. Spaces and ASCII letters have a zero high byte.
        big = text[0::2].count(0) >= text[1::2].count(0)
        return text.decode("utf-16-be" if big else "utf-16-le", errors="replace")
    if code not in (b"ASCII\0\0\0", bytes(8)):
        text = value
    return text.decode("utf-8", errors="replace")


def _clean(text: str | None) -> str:
    """Without NUL and lone surrogates, which JSON can spell but no file can hold."""
    return (text or "").replace("\0", "").encode("utf-8", "replace").decode().strip()


# --- formats -----------------------------------------------------------------------------------


def _parameters(text: str, fields: Fields) -> str | None:
    """A1111's `parameters`, or Fooocus' JSON under the same key."""
    if text.lstrip().startswith("{"):
        return _string(_json(text), "prompt")
    return _before_settings(text)


def _comment(text: str, fields: Fields) -> str | None:
    """The same texts in a JPEG or WebP comment, which may as well hold anything else."""
    if text.lstrip().startswith("{"):
        facts = _json(text)
        return _string(facts, "prompt") or _from_graph(facts)
    return _before_settings(text) if re.search(r"^Steps: \d", text, re.MULTILINE) else None


def _before_settings(text: str) -> str:
    return re.split(r"(?:^|\n)(?:Negative prompt:|Steps: \d)", text, maxsplit=1)[0]


def _comfy_prompt(text: str, fields: Fields) -> str | None:
    return _from_graph(_json(text))


def _comfy_workflow(text: str, fields: Fields) -> str | None:
    return _from_graph(_as_graph(_json(text)))


def _after(label: str, read: Reader) -> Reader:
    """ComfyUI's WebP files carry `prompt:{…}` and `workflow:{…}` in camera tags."""

    def reader(text: str, fields: Fields) -> str | None:
        return read(text.removeprefix(label), fields) if text.startswith(label) else None

    return reader


def _invoke_2(text: str, fields: Fields) -> str | None:
    prompt = _get(_get(_json(text), "image"), "prompt")
    parts = prompt if isinstance(prompt, list) else [{"prompt": prompt}]
    return _without_negative(" ".join(filter(None, (_string(part, "prompt") for part in parts))))


def _invoke_1(text: str, fields: Fields) -> str | None:
    quoted = re.match(r'\s*"(.*?)"\s*(?:-|$)', text, re.DOTALL)
    return _without_negative(quoted[1]) if quoted else None


def _json_field(name: str) -> Reader:
    return lambda text, fields: _string(_json(text), name)


def _without_negative(text: str) -> str:
    """InvokeAI 1 and 2 put the negative prompt in square brackets."""
    return re.sub(r"\[[^\[\]]*\]", "", text)


def _novelai(text: str, fields: Fields) -> str | None:
    # Any program may write a Description; NovelAI's is the prompt.
    return text if "NovelAI" in fields.get("Software", "") + fields.get("Source", "") else None


_PNG_READERS: tuple[tuple[str, str, Reader], ...] = (
    ("parameters", "A1111 parameters (PNG text)", _parameters),
    ("prompt", "ComfyUI prompt (PNG text)", _comfy_prompt),
    ("workflow", "ComfyUI workflow (PNG text)", _comfy_workflow),
    ("invokeai_metadata", "InvokeAI metadata (PNG text)", _json_field("positive_prompt")),
    ("sd-metadata", "InvokeAI sd-metadata (PNG text)", _invoke_2),
    ("Dream", "InvokeAI Dream (PNG text)", _invoke_1),
    ("Comment", "NovelAI comment (PNG text)", _json_field("prompt")),
    ("Description", "NovelAI description (PNG text)", _novelai),
)
_EXIF_READERS: tuple[tuple[str, str, Reader], ...] = (
    ("UserComment", "EXIF user comment", _comment),
    ("ImageDescription", "EXIF image description", _comment),
    ("Model", "ComfyUI prompt (EXIF)", _after("prompt:", _comfy_prompt)),
    ("Make", "ComfyUI workflow (EXIF)", _after("workflow:", _comfy_workflow)),
)


# --- JSON of unknown shape ---------------------------------------------------------------------


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _get(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None


def _string(value: object, key: str) -> str | None:
    text = _get(value, key)
    return text if isinstance(text, str) else None


# --- ComfyUI graphs ----------------------------------------------------------------------------

_TEXT_INPUT = re.compile(
    r"(?:populated_|wildcard_)?(?:text|string|prompt|value|t5xxl|clip_[lg])(?:_?[a-z]|_?\d+|_positive|_negative)?"
)
_PASS_ON = re.compile(r"conditioning\w*|any_?\d*|input\d*|")  # combine, area, switch and reroute nodes
_TEXT_NODE = re.compile(r"text|string|prompt|primitive", re.IGNORECASE)
_SAMPLER_NODE = re.compile(r"sampler|guider", re.IGNORECASE)


def _from_graph(graph: object) -> str | None:
    """The positive prompt of an API graph: {node id: {"class_type": …, "inputs": {name: value or link}}}."""
    if not isinstance(graph, dict):
        return None
    positive, _ = _conditioning(graph, "positive")
    if positive:
        return ", ".join(positive)
    _, negative = _conditioning(graph, "negative")
    loose = [
        value
        for node_id, node in graph.items()
        if node_id not in negative and "TextEncode" in (_string(node, "class_type") or "")
        for name, value in _inputs(node).items()
        if isinstance(value, str) and "negative" not in name
    ]
    return max(loose, key=len, default=None)


def _conditioning(graph: Mapping[str, object], side: str) -> tuple[list[str], set[str]]:
    """The texts that reach the samplers on the positive or the negative side, and the nodes on the way."""
    walk = _Walk(graph, side)
    texts: list[str] = []
    for node in graph.values():
        if _SAMPLER_NODE.search(_string(node, "class_type") or ""):
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
        if not (isinstance(value, list) and len(value) == 2) or depth > self.MAX_DEPTH:
            return []
        node_id = str(value[0])
        if node_id in self.seen:
            return []
        self.seen.add(node_id)
        inputs = _inputs(self.graph.get(node_id))
        texts = list(self._texts(inputs, depth))
        delimiter = inputs.get("delimiter")
        if isinstance(delimiter, str) and len(delimiter) <= self.MAX_DELIMITER and texts:
            return [delimiter.join(texts)]
        return texts

    def _texts(self, inputs: Mapping[str, object], depth: int) -> Iterator[str]:
        for name, value in inputs.items():
            if self.other in name:
                continue
            if name == self.side or _PASS_ON.fullmatch(name) or _TEXT_INPUT.fullmatch(name):
                yield from self.follow(value, depth + 1)


def _inputs(node: object) -> Mapping[str, object]:
    inputs = _get(node, "inputs")
    return inputs if isinstance(inputs, dict) else {}


def _as_graph(workflow: object) -> dict[str, object]:
    """A UI workflow (nodes with widgets, links in a list) in the shape of an API graph."""
    sources = {
        str(link[0]): [str(link[1]), 0]
        for link in _items(_get(workflow, "links"))
        if isinstance(link, list) and len(link) >= 2
    }
    graph: dict[str, object] = {}
    for node in _items(_get(workflow, "nodes")):
        kind = _string(node, "type") or ""
        inputs: dict[str, object] = {
            _string(slot, "name") or "": sources[str(_get(slot, "link"))]
            for slot in _items(_get(node, "inputs"))
            if str(_get(slot, "link")) in sources
        }
        if _TEXT_NODE.search(kind) and not any(map(_TEXT_INPUT.fullmatch, inputs)):
            widgets = _get(node, "widgets_values")
            values = widgets.values() if isinstance(widgets, dict) else _items(widgets)
            inputs |= {f"text_{i}": value for i, value in enumerate(values) if isinstance(value, str)}
        graph[str(_get(node, "id"))] = {"class_type": kind, "inputs": inputs}
    return graph


def _items(value: object) -> Iterable[object]:
    return value if isinstance(value, list) else ()
