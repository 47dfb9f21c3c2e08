"""Teachers: multimodal LLMs that put an image's scores into words (paper, section III-A).

API keys come from the environment alone and stand in no message, log or file.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
from PIL import Image

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.images import open_image
from m3agiqa.json_lines import read_json_lines
from m3agiqa.prompts import TEACHER
from m3agiqa.samples import Sample

SCORES_SENTENCE = "The quality score is {mos_q}, alignment score is {mos_a}, authenticity score is {mos_au}."
LONGEST_SIDE = 1024  # pixels of what is sent; teachers reduce larger images themselves, at our cost
NAMES = {Aspect.QUALITY: "quality", Aspect.CORRESPONDENCE: "alignment", Aspect.AUTHENTICITY: "authenticity"}
"""The aspects as the paper's teacher template calls them."""


class TeacherError(M3AgiqaError):
    """This teacher will not answer, however often it is asked; the message says what to mend."""


class Refused(M3AgiqaError):
    """A safety filter will not let this sample pass; another teacher may."""


class Busy(M3AgiqaError):
    """Worth asking again: overload, rate limit, time-out, an answer that makes no sense."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds to wait, where the server named them."""


@dataclass(frozen=True)
class Reply:
    """What a teacher said, and what is paid for."""

    text: str
    input_tokens: int = 0
    output_tokens: int = 0


class Teacher(Protocol):
    """Answers the question about one sample's image; raises TeacherError, Refused or Busy."""

    name: str

    def explain(self, sample: Sample, question: str) -> Reply: ...


def question(sample: Sample, scale: MosScale) -> str:
    """The paper's template with a sample's prompt and MOS (paper, VIII-A.1).

    Scores that a data set does not have are left out of the sentence that names them.
    """
    told = [f"{NAMES[aspect]} score is {sample.mos[aspect]:g}" for aspect in Aspect if aspect in sample.mos]
    sentence = f"The {', '.join(told)}." if told else ""
    text = TEACHER.replace(SCORES_SENTENCE, sentence)
    return text.format(prompt=sample.prompt or "", min=f"{scale.low:g}", max=f"{scale.high:g}")


def descriptions(text: str, wanted: Sequence[Aspect]) -> dict[Aspect, str]:
    """One description per aspect from a teacher's answer.

    Lenient about what surrounds the JSON object, capital letters, and correspondence by its other name.
    Raises Busy when an aspect is missing: asked again, teachers usually get it right.
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[start : end + 1], strict=False)
    except ValueError as error:
        raise Busy(f"the answer is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Busy("the answer is not a JSON object")
    said = {key.lower().removesuffix("_explanation").strip(): value for key, value in found.items()}
    result = {}
    for aspect in wanted:
        value = said.get(NAMES[aspect], said.get(str(aspect)))
        if not isinstance(value, str) or not value.strip():
            raise Busy(f"the answer has no explanation of {aspect}")
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

    def explain(self, sample: Sample, question: str) -> Reply:
        from google.api_core import exceptions

        try:
            response = self._model.generate_content(
                [question, _small(sample.image)], request_options=self._options
            )
        except (exceptions.TooManyRequests, exceptions.ServerError) as error:
            raise Busy(self._scrub(error.message), _retry_after(error)) from error
        except exceptions.GoogleAPICallError as error:
            raise TeacherError(f"{self.name} rejects the request: {self._scrub(error.message)}") from None
        except (exceptions.RetryError, OSError) as error:  # time-outs and broken connections
            raise Busy(self._scrub(f"no answer: {type(error).__name__}")) from None
        used = response.usage_metadata
        if not response.candidates or not response.parts:
            reason = response.prompt_feedback.block_reason or (
                response.candidates[0].finish_reason if response.candidates else 0
            )
            raise Refused(f"{self.name} refuses this image or prompt ({getattr(reason, 'name', reason)})")
        return Reply(response.text, used.prompt_token_count, used.candidates_token_count)

    def _scrub(self, text: str) -> str:
        return text.replace(self._key, "…")


class OpenAITeacher:
    """Any endpoint that speaks OpenAI's chat completions: GPT-4o, or a local server.

    The key is OPENAI_API_KEY (a local server may need none), the address OPENAI_BASE_URL.
    """

    def __init__(self, model: str = "gpt-4o", endpoint: str | None = None, timeout: float = 120) -> None:
        self.name = model
        base = endpoint or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        local = httpx.URL(base).host in ("localhost", "127.0.0.1", "::1")
        key = os.environ.get("OPENAI_API_KEY", "") if local else _key("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=base, timeout=timeout, headers=headers)
        self._key = key

    def explain(self, sample: Sample, question: str) -> Reply:
        picture = {"url": f"data:image/jpeg;base64,{_jpeg(sample.image)}"}
        content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": picture}]
        body = {"model": self.name, "messages": [{"role": "user", "content": content}]}
        try:
            response = self._client.post("chat/completions", json=body)
        except httpx.TransportError as error:
            raise Busy(f"no answer: {type(error).__name__}") from None
        if response.status_code == 429 or response.status_code >= 500:
            raise Busy(f"status {response.status_code}", _seconds(response.headers.get("retry-after")))
        try:
            answer = response.json()
        except ValueError as error:
            raise Busy(f"status {response.status_code} without JSON") from error
        if response.is_error:
            self._reject(answer, response.status_code)
        return self._read(answer)

    def _reject(self, answer: object, status: int) -> None:
        error = answer.get("error") if isinstance(answer, dict) else None
        error = error if isinstance(error, dict) else {}
        if any(word in str(error.get("code")) for word in ("content_policy", "content_filter")):
            raise Refused(f"{self.name} refuses this image or prompt ({error['code']})")
        said = str(error.get("message") or f"status {status}")
        if self._key:
            said = said.replace(self._key, "…")
        raise TeacherError(f"{self.name} rejects the request: {said}")

    def _read(self, answer: object) -> Reply:
        try:
            (choice,) = answer["choices"][:1]
            message, used = choice["message"], answer.get("usage") or {}
            if message.get("refusal") or choice.get("finish_reason") == "content_filter":
                raise Refused(f"{self.name} refuses this image or prompt")
            tokens = used.get("prompt_tokens", 0), used.get("completion_tokens", 0)
            return Reply(str(message["content"] or ""), *tokens)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Busy(f"an answer of unknown form ({type(error).__name__})") from error


class RecordedTeacher:
    """Answers that were given before: JSON Lines of id and one text per aspect."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._said: dict[str, str] = {}
        for number, row in read_json_lines(path):
            try:
                self._said[str(row["id"])] = json.dumps({k: v for k, v in row.items() if k != "id"})
            except (TypeError, KeyError, AttributeError) as error:
                raise InputError(f"{path}, line {number} is no recorded answer: {error}") from error

    def explain(self, sample: Sample, question: str) -> Reply:
        if sample.id not in self._said:
            raise Refused(f"{self.name} has no answer for {sample.id}")
        return Reply(self._said[sample.id])


def teacher(name: str) -> Teacher:
    """`gemini`, `openai` (either with `:MODEL`) or `recorded:FILE`."""
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
    raise TeacherError(f"This teacher needs an API key in the environment: set {' or '.join(names)}.")


def _small(path: Path) -> Image.Image:
    image = open_image(path)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return image


def _jpeg(path: Path) -> str:
    buffer = io.BytesIO()
    _small(path).save(buffer, "JPEG", quality=95)
    return base64.b64encode(buffer.getvalue()).decode()


def _retry_after(error: object) -> float | None:
    """From the HTTP header, or from the details that Google puts into the body."""
    response = getattr(error, "response", None)
    if response is not None and (seconds := _seconds(response.headers.get("retry-after"))) is not None:
        return seconds
    for detail in getattr(error, "details", []) or []:
        delay = getattr(detail, "retry_delay", None)
        if delay is not None:
            return delay.total_seconds() if hasattr(delay, "total_seconds") else float(delay.seconds)
    return None


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:  # a date; our own patience is as good
        return None
