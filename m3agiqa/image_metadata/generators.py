"""What each generator writes into its files, and how the prompt is taken out of that."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from m3agiqa.image_metadata import comfyui
from m3agiqa.image_metadata.json_values import member, parsed, text_member
from m3agiqa.image_metadata.places import HIDDEN_TEXT, TextPlace, Texts

PromptReader = Callable[[str, Texts], str | None]
"""The text of its key and all texts of the place -> the prompt; None if it is not of this kind."""


OTHER_PROGRAMS = "others"


@dataclass(frozen=True)
class PromptSource:
    """One text in which a generator leaves its prompt."""

    generator: str
    place: TextPlace
    key: str
    read: PromptReader

    @property
    def origin(self) -> str:
        """In words for people."""
        return f"{self.generator} {self.key} ({self.place})".removeprefix(f"{OTHER_PROGRAMS} ")


# --- A1111 and what writes like it ---------------------------------------------------------------

_SETTINGS_LINE = re.compile(r"^Steps: \d+(?:,|$)", re.MULTILINE)


def _a1111(text: str, texts: Texts) -> str | None:
    """All in front of the negative prompt and of the last line of settings."""
    if text.lstrip().startswith("{"):
        return None
    settings = [line.start() for line in _SETTINGS_LINE.finditer(text)]
    return re.split(r"^Negative prompt:", text[: settings[-1]] if settings else text, flags=re.MULTILINE)[0]


def _a1111_with_settings(text: str, texts: Texts) -> str | None:
    """The same in a place that may as well hold anything else."""
    return _a1111(text, texts) if _SETTINGS_LINE.search(text) else None


# --- JSON ----------------------------------------------------------------------------------------


def _json_field(name: str, *others: str) -> PromptReader:
    """A text of a JSON object that has one of the other fields too, if there are any."""

    def read(text: str, texts: Texts) -> str | None:
        facts = parsed(text)
        is_of_this_kind = not others or any(member(facts, other) is not None for other in others)
        return text_member(facts, name) if is_of_this_kind else None

    return read


def _swarmui(text: str, texts: Texts) -> str | None:
    return text_member(member(parsed(text), "sui_image_params"), "prompt")


def _novelai(text: str, texts: Texts) -> str | None:
    """Its PNG texts as one JSON object, which it hides in the pixels."""
    facts = parsed(text)
    return _json_field("prompt")(text_member(facts, "Comment") or "", texts) or text_member(
        facts, "Description"
    )


def _invokeai(text: str, texts: Texts) -> str | None:
    """Of SDXL the prompt and, where it is another one, the style prompt: both made the image."""
    facts = parsed(text)
    prompts = [text_member(facts, name) or "" for name in ("positive_prompt", "positive_style_prompt")]
    return ", ".join(dict.fromkeys(prompt.strip() for prompt in prompts if prompt.strip()))


def _invokeai_2(text: str, texts: Texts) -> str | None:
    prompt = member(member(parsed(text), "image"), "prompt")
    parts = prompt if isinstance(prompt, list) else [{"prompt": prompt}]
    return _without_negative(" ".join(filter(None, (text_member(part, "prompt") for part in parts))))


def _invokeai_1(text: str, texts: Texts) -> str | None:
    quoted = re.match(r'\s*"(.*?)"\s*(?:-|$)', text, re.DOTALL)
    return _without_negative(quoted[1]) if quoted else None


def _without_negative(text: str) -> str:
    """InvokeAI 1 and 2 put the negative prompt in square brackets."""
    return re.sub(r"\[[^\[\]]*\]", "", text)


# --- plain texts -----------------------------------------------------------------------------------


def _plain(text: str, texts: Texts) -> str | None:
    """Anything with letters that is no JSON."""
    is_json = re.match(r'\s*(?:\{\s*["}]|\[\s*["{\[\]])', text)
    return text if not is_json and any(map(str.isalnum, text)) else None


def _easy_diffusion(text: str, texts: Texts) -> str | None:
    names = {"num_inference_steps", "use_stable_diffusion_model", "Steps", "Stable Diffusion model"}
    return _plain(text, texts) if names & texts.keys() else None


def _novelai_description(text: str, texts: Texts) -> str | None:
    # Any program may write a Description; NovelAI's is the prompt.
    return text if "NovelAI" in texts.get("Software", "") + texts.get("Source", "") else None


def _draw_things(text: str, texts: Texts) -> str | None:
    """A description as that of A1111, whose negative prompt is a line that begins with a minus."""
    if "Draw Things" not in texts.get("CreatorTool", ""):
        return None
    return re.split(r"\n-", _a1111(text, texts) or "")[0]


_JOB_ID = re.compile(r"Job ID: [0-9a-f]{8}-")
_MIDJOURNEY_PARAMETER = re.compile(
    r"(?:^|\s)(?:--|—)(?:ar|aspect|v|version|niji|style|stylize|s|chaos|c|q|raw)\b"
)


def _midjourney(text: str, texts: Texts) -> str | None:
    """A description without image addresses in front, and parameters and job behind."""
    if not (_JOB_ID.search(text) or _MIDJOURNEY_PARAMETER.search(text)):
        return None
    prompt = re.split(r"(?:^|\s)(?:(?:--|—)(?=[a-z])|Job ID: )", text, maxsplit=1)[0]
    return re.sub(r"^(?:<?https?://\S+\s+)+", "", prompt)


def _after(label: str, read: PromptReader) -> PromptReader:
    """ComfyUI's WebP files carry `prompt:{…}` and `workflow:{…}` in camera tags."""

    def reader(text: str, texts: Texts) -> str | None:
        return read(text.removeprefix(label), texts) if text.startswith(label) else None

    return reader


def _comfyui_prompt(text: str, texts: Texts) -> str | None:
    return comfyui.prompt_of_graph(parsed(text))


def _comfyui_workflow(text: str, texts: Texts) -> str | None:
    return comfyui.prompt_of_workflow(parsed(text))


def _comfyui_both(text: str, texts: Texts) -> str | None:
    """Some nodes that save JPEGs write graph and workflow as one JSON object."""
    facts = parsed(text)
    graph, workflow = member(facts, "prompt"), member(facts, "workflow")
    graph = parsed(graph) if isinstance(graph, str) else graph
    return comfyui.prompt_of_graph(graph or facts) or comfyui.prompt_of_workflow(workflow)


PROMPT_SOURCES: tuple[PromptSource, ...] = (
    PromptSource("A1111", TextPlace.PNG_TEXT, "parameters", _a1111),
    PromptSource("A1111", TextPlace.COMMENT, "comment", _a1111_with_settings),
    PromptSource("A1111", TextPlace.EXIF, "UserComment", _a1111_with_settings),
    PromptSource("A1111", TextPlace.EXIF, "ImageDescription", _a1111_with_settings),
    PromptSource("A1111", TextPlace.HIDDEN, HIDDEN_TEXT, _a1111),
    PromptSource("SwarmUI", TextPlace.PNG_TEXT, "parameters", _swarmui),
    PromptSource("SwarmUI", TextPlace.EXIF, "UserComment", _swarmui),
    PromptSource("SwarmUI", TextPlace.HIDDEN, HIDDEN_TEXT, _swarmui),
    PromptSource(
        "Fooocus", TextPlace.PNG_TEXT, "parameters", _json_field("prompt", "performance", "base_model")
    ),
    PromptSource(
        "Fooocus", TextPlace.EXIF, "UserComment", _json_field("prompt", "performance", "base_model")
    ),
    PromptSource("ComfyUI", TextPlace.PNG_TEXT, "prompt", _comfyui_prompt),
    PromptSource("ComfyUI", TextPlace.PNG_TEXT, "workflow", _comfyui_workflow),
    PromptSource("ComfyUI", TextPlace.EXIF, "UserComment", _comfyui_both),
    PromptSource("ComfyUI", TextPlace.EXIF, "Model", _after("prompt:", _comfyui_prompt)),
    PromptSource("ComfyUI", TextPlace.EXIF, "Make", _after("workflow:", _comfyui_workflow)),
    PromptSource("InvokeAI", TextPlace.PNG_TEXT, "invokeai_metadata", _invokeai),
    PromptSource("InvokeAI", TextPlace.PNG_TEXT, "sd-metadata", _invokeai_2),
    PromptSource("InvokeAI", TextPlace.PNG_TEXT, "Dream", _invokeai_1),
    PromptSource("NovelAI", TextPlace.PNG_TEXT, "Comment", _json_field("prompt")),
    PromptSource("NovelAI", TextPlace.PNG_TEXT, "Description", _novelai_description),
    PromptSource("NovelAI", TextPlace.HIDDEN, HIDDEN_TEXT, _novelai),
    PromptSource("Draw Things", TextPlace.EXIF, "UserComment", _json_field("c", "uc", "sampler")),
    PromptSource("Draw Things", TextPlace.XMP, "UserComment", _json_field("c", "uc", "sampler")),
    PromptSource("Draw Things", TextPlace.XMP, "description", _draw_things),
    PromptSource("Midjourney", TextPlace.PNG_TEXT, "Description", _midjourney),
    PromptSource("Midjourney", TextPlace.EXIF, "ImageDescription", _midjourney),
    PromptSource("Midjourney", TextPlace.XMP, "description", _midjourney),
    PromptSource("Easy Diffusion", TextPlace.PNG_TEXT, "prompt", _easy_diffusion),
    PromptSource("Easy Diffusion", TextPlace.PNG_TEXT, "Prompt", _easy_diffusion),
    PromptSource(
        "Easy Diffusion", TextPlace.EXIF, "UserComment", _json_field("prompt", "num_inference_steps")
    ),
    PromptSource("Sygil", TextPlace.PNG_TEXT, "SD:prompt", _plain),
    PromptSource("mold", TextPlace.PNG_TEXT, "mold:prompt", _plain),
    PromptSource(OTHER_PROGRAMS, TextPlace.PNG_TEXT, "prompt", _plain),
    PromptSource(OTHER_PROGRAMS, TextPlace.PNG_TEXT, "parameters", _json_field("prompt")),
    PromptSource(OTHER_PROGRAMS, TextPlace.EXIF, "UserComment", _json_field("prompt")),
)
"""In this order; the first that yields a text is taken."""
