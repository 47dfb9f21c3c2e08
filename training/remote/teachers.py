"""Teachers: multimodal LLMs that put an image's scores into words (paper, section III-A).

API keys come from the environment alone and stand in no message, log or file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from PIL import Image

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.images import data_url, open_image
from m3agiqa.json_lines import read_json_lines
from m3agiqa.prompts import TEACHER_PROMPT
from m3agiqa.samples import Sample
from training.data.human_feedback import read_annotations, sample_key
from training.remote.client import (
    KEY_VARIABLE,
    ChatReply,
    ChatServer,
    ContentRefused,
    ServerError,
    TemporaryError,
    seconds,
)

OPENAI_URL = "https://api.openai.com/v1"
SCORES_TEMPLATE = "The quality score is {mos_q}, alignment score is {mos_a}, authenticity score is {mos_au}."
EXAMPLES_HEADER = (
    "These are people's own descriptions of other images. Judge by their standards and write in their "
    "manner, but only about what this image shows:"
)
MAX_SIDE = 1024  # pixels of what is sent; teachers reduce larger images themselves, at our cost
TEACHER_ASPECT_NAMES = {
    Aspect.QUALITY: "quality",
    Aspect.CORRESPONDENCE: "alignment",
    Aspect.AUTHENTICITY: "authenticity",
}
"""The aspects as the paper's teacher template calls them."""


class Teacher(Protocol):
    """Answers the question about one sample's image; raises ServerError, ContentRefused or TemporaryError."""

    name: str

    def explain(self, sample: Sample, question: str) -> ChatReply: ...


def question(sample: Sample, scale: MosScale, examples: Sequence[Sample] = ()) -> str:
    """The paper's template with a sample's prompt and MOS (paper, VIII-A.1), then people's worked examples.

    Scores that a data set does not have are left out of the sentence that names them.
    """
    text = TEACHER_PROMPT.replace(SCORES_TEMPLATE, _scores_sentence(sample))
    asked = text.format(prompt=sample.prompt or "", min=f"{scale.low:g}", max=f"{scale.high:g}")
    return asked + examples_text(examples)


def examples_text(examples: Sequence[Sample]) -> str:
    """What a question ends with where people have described other images; empty without examples."""
    if not examples:
        return ""
    shown = []
    for example in examples:
        answer = {f"{TEACHER_ASPECT_NAMES[a]}_explanation": text for a, text in example.descriptions.items()}
        body = json.dumps(answer, indent=2, ensure_ascii=False)
        prompt = f"Text prompt: '{example.prompt or ''}'."
        shown.append(f"{prompt} {_scores_sentence(example)}\n```\n{body}\n```")
    return "\n\n".join(("", EXAMPLES_HEADER, *shown))


def _scores_sentence(sample: Sample) -> str:
    scores = [f"{TEACHER_ASPECT_NAMES[a]} score is {sample.mos[a]:g}" for a in Aspect if a in sample.mos]
    return f"The {', '.join(scores)}." if scores else ""


def descriptions(text: str, wanted: Sequence[Aspect]) -> dict[Aspect, str]:
    """One description per aspect from a teacher's answer.

    Lenient about what surrounds the JSON object, capital letters, and correspondence by its other name.
    Raises TemporaryError when an aspect is missing: asked again, teachers usually get it right.
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        answer = json.loads(text[start : end + 1], strict=False)
    except ValueError as error:
        raise TemporaryError(f"the answer is not JSON: {error}") from error
    if not isinstance(answer, dict):
        raise TemporaryError("the answer is not a JSON object")
    texts = {key.lower().removesuffix("_explanation").strip(): value for key, value in answer.items()}
    result = {}
    for aspect in wanted:
        value = texts.get(TEACHER_ASPECT_NAMES[aspect], texts.get(str(aspect)))
        if not isinstance(value, str) or not value.strip():
            raise TemporaryError(f"the answer has no explanation of {aspect}")
        result[aspect] = " ".join(value.split())
    return result


class GeminiTeacher:
    """Google's Gemini through google-generativeai; the key is GEMINI_API_KEY or GOOGLE_API_KEY."""

    def __init__(
        self, model: str = "gemini-1.5-pro", endpoint: str | None = None, timeout: float = 120
    ) -> None:
        import google.generativeai as genai  # takes seconds, and only this teacher needs it
        from google.api_core.client_options import ClientOptions

        key = _key("GEMINI_API_KEY", "GOOGLE_API_KEY")
        options = ClientOptions(api_endpoint=endpoint) if endpoint else None
        genai.configure(api_key=key, transport="rest", client_options=options)
        self.name = model
        self._model = genai.GenerativeModel(model)
        self._options = {"timeout": timeout, "retry": None}  # distill asks again, with its own patience
        self._key = key

    def explain(self, sample: Sample, question: str) -> ChatReply:
        from google.api_core import exceptions

        try:
            response = self._model.generate_content(
                [question, _small(sample.image)], request_options=self._options
            )
        except (exceptions.TooManyRequests, exceptions.ServerError) as error:
            raise TemporaryError(self._scrub(error.message), _retry_after(error)) from error
        except exceptions.GoogleAPICallError as error:
            raise ServerError(f"{self.name} rejects the request: {self._scrub(error.message)}") from None
        except (exceptions.RetryError, OSError) as error:  # time-outs and broken connections
            raise TemporaryError(self._scrub(f"no answer: {type(error).__name__}")) from None
        used = response.usage_metadata
        if not response.candidates or not response.parts:
            reason = response.prompt_feedback.block_reason or (
                response.candidates[0].finish_reason if response.candidates else 0
            )
            raise ContentRefused(
                f"{self.name} refuses this image or prompt ({getattr(reason, 'name', reason)})"
            )
        return ChatReply(response.text, used.prompt_token_count, used.candidates_token_count)

    def _scrub(self, text: str) -> str:
        return text.replace(self._key, "…")


class OpenAITeacher:
    """Any endpoint that speaks OpenAI's chat completions: GPT-4o, or a local server.

    The key is OPENAI_API_KEY (a local server may need none), the address OPENAI_BASE_URL.
    """

    def __init__(self, model: str = "gpt-4o", endpoint: str | None = None, timeout: float = 120) -> None:
        self.name = model
        self._server = ChatServer(endpoint or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL, timeout)
        if urlsplit(self._server.url).hostname not in ("localhost", "127.0.0.1", "::1"):
            _key(KEY_VARIABLE)

    def explain(self, sample: Sample, question: str) -> ChatReply:
        picture = {"url": data_url(_small(sample.image), "JPEG", quality=95)}
        content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": picture}]
        return self._server.answer(self.name, [{"role": "user", "content": content}])


class RecordedTeacher:
    """Answers that were given before: JSON Lines of id and one text per aspect, or an export of annotations,
    whose answers are people's descriptions, for the same image and prompt."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._is_export = path.is_dir()
        self._answers: dict[str | tuple[str, str], dict[str, str]] = {}
        if self._is_export:
            for sample in read_annotations(path).samples:
                self._answers[sample_key(sample)] = {str(a): text for a, text in sample.descriptions.items()}
            return
        for number, row in read_json_lines(path):
            try:
                self._answers[str(row["id"])] = {k: v for k, v in row.items() if k != "id"}
            except (TypeError, KeyError, AttributeError) as error:
                raise InputError(f"{path}, line {number} is no recorded answer: {error}") from error

    def explain(self, sample: Sample, question: str) -> ChatReply:
        answer = self._answers.get(sample_key(sample) if self._is_export else sample.id)
        if answer is None or (
            self._is_export and not answer.keys() >= sample.mos.keys() - sample.descriptions
        ):
            raise ContentRefused(f"{self.name} has no answer for {sample.id}")
        return ChatReply(json.dumps(answer))


def teacher(name: str) -> Teacher:
    """`gemini`, `openai` (either with `:MODEL`) or `recorded:FILE`, also of an export's folder."""
    kind, _, detail = name.partition(":")
    if kind == "gemini":
        return GeminiTeacher(detail) if detail else GeminiTeacher()
    if kind == "openai":
        return OpenAITeacher(detail) if detail else OpenAITeacher()
    if kind == "recorded" and detail:
        return RecordedTeacher(Path(detail))
    raise InputError(
        f"There is no teacher {name!r}. Give gemini, openai (either with :MODEL) or recorded:FILE."
    )


def _key(*names: str) -> str:
    for name in names:
        if value := os.environ.get(name):
            return value
    raise ServerError(f"This teacher needs an API key in the environment: set {' or '.join(names)}.")


def _small(path: Path) -> Image.Image:
    image = open_image(path)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


def _retry_after(error: object) -> float | None:
    """From the HTTP header, or from the details that Google puts into the body."""
    response = getattr(error, "response", None)
    if response is not None and (named := seconds(response.headers.get("retry-after"))) is not None:
        return named
    for detail in getattr(error, "details", []) or []:
        delay = getattr(detail, "retry_delay", None)
        if delay is not None:
            return delay.total_seconds() if hasattr(delay, "total_seconds") else float(delay.seconds)
    return None
