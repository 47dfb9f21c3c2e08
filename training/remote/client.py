"""Servers that speak OpenAI's chat completions: OpenAI itself, vLLM, llama.cpp and others.

The key is OPENAI_API_KEY of the environment, and stands in no message, log or file.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Sequence
from typing import Any

import httpx
from PIL import Image

from m3agiqa.errors import InputError
from training.remote.asking import ChatReply, ContentRefused, RequestRejected, ServerError, TemporaryError

KEY_VARIABLE = "OPENAI_API_KEY"
LONGEST_QUOTE = 300  # characters of what a server says
TOO_LONG = re.compile(r"context.?(length|window|size)|too long|maximum.*length", re.IGNORECASE)
NO_IMAGES = re.compile(
    r"at most 0 image|not a multi-?modal|mmproj|image.{0,40}(\bnot|\bonly|n't)\b.{0,20}support",
    re.IGNORECASE,
)

Message = dict[str, Any]


class ChatServer:
    """A server and its models."""

    def __init__(self, url: str, timeout: float = 120) -> None:
        """`timeout` is in seconds, for one answer. Raises InputError for what is no URL, or no key."""
        self.url = base_url(url)
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):  # errors of the client would quote it
            raise InputError(f"{KEY_VARIABLE} holds characters that no key has. Set it anew.")
        self._client = httpx.Client(
            base_url=self.url,
            timeout=timeout,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            limits=httpx.Limits(max_connections=None),
        )

    def models(self) -> list[str] | None:
        """The models that it offers; None if it does not tell. Raises ServerError if it cannot be reached."""
        try:
            answer = self._send("GET", "models")
            return [str(model["id"]) for model in answer["data"]]
        except TemporaryError as error:
            raise ServerError(
                f"There is no answer from {self.url}: {error}. Start it, or mend its URL."
            ) from error
        except (RequestRejected, KeyError, TypeError):
            return None

    def answer(self, model: str, messages: Sequence[Message], **options: object) -> ChatReply:
        """The model's next turn. Raises ServerError, RequestRejected, ContentRefused or TemporaryError."""
        body = {"model": model, "messages": list(messages), **options}
        return _read(self._send("POST", "chat/completions", body), model)

    def _send(self, method: str, path: str, body: dict | None = None) -> Any:
        try:
            response = self._client.request(method, path, json=body)
        except httpx.RequestError as error:
            late = isinstance(error, httpx.TimeoutException)
            raise TemporaryError("it took too long" if late else str(error) or type(error).__name__) from None
        status = response.status_code
        if response.is_redirect:
            raise ServerError(f"{self.url} has moved to {response.headers.get('location')}. Give that URL.")
        if response.is_error:
            self._reject(response, body)
        try:
            return response.json()
        except ValueError as error:
            raise TemporaryError(f"status {status} without JSON") from error

    def _reject(self, response: httpx.Response, body: dict | None) -> None:
        """Raise what an answer other than 200 means."""
        status, model = response.status_code, (body or {}).get("model")
        code, said = self._said(response)
        if body and NO_IMAGES.search(said):
            raise ServerError(f"The model {model} at {self.url} takes no images: {said}")
        if status in (408, 425, 429) or status >= 500:
            raise TemporaryError(f"status {status}", seconds(response.headers.get("retry-after")))
        if "content_policy" in code or "content_filter" in code:
            raise ContentRefused(f"{model} refuses this image or prompt ({code})")
        if status in (401, 403):
            mend = f"It does not accept the key in {KEY_VARIABLE}" if self._key else f"Set {KEY_VARIABLE}"
            raise ServerError(f"{self.url} rejects the request. {mend}; it says: {said}")
        if status == 404 and body:
            raise ServerError(self._not_found(model))
        if status in (400, 413) and TOO_LONG.search(f"{code} {said}"):
            raise RequestRejected(
                f"image and conversation are longer than {model} can read there (its server's limit of "
                f"context): {said}"
            )
        raise RequestRejected(f"{model or self.url} rejects the request: {said}")

    def _not_found(self, model: object) -> str:
        offered = self.models()
        if offered is None:
            return f"There are no chat completions at {self.url}. Mend the URL; for vLLM it ends with /v1."
        if model in offered:
            return f"{self.url} offers {model}, but no chat completions."
        return f"{self.url} has no model {model}; it offers {', '.join(offered) or 'none'}."

    def _said(self, response: httpx.Response) -> tuple[str, str]:
        """Code and message of an error, the message in one line and without the key."""
        try:
            answer = response.json()
        except ValueError:
            answer = None
        found = answer if isinstance(answer, dict) else {}
        error = found.get("error", found.get("detail", found))
        error = error if isinstance(error, dict) else {"message": error}
        said = " ".join(str(error.get("message") or f"status {response.status_code}").split())
        said = said.replace(self._key, "…") if self._key else said
        return str(error.get("code")), said[:LONGEST_QUOTE]


def base_url(text: str) -> str:
    """The URL of a server's API, which for a mere host ends with /v1. Raises InputError."""
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL as error:
        raise InputError(f"{text} is no URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"{text} is no URL of a server; one looks like http://localhost:8000/v1.")
    if url.userinfo:
        raise InputError(f"A server's URL must not hold a password; put the key into {KEY_VARIABLE}.")
    path = url.path.rstrip("/").removesuffix("/chat/completions")
    return str(url.copy_with(path=path or "/v1"))


def data_url(image: Image.Image, kind: str, **options: object) -> str:
    """An image as a URL that holds it, in one of Pillow's formats (with its options)."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def seconds(text: str | None) -> float | None:
    """Of a Retry-After header; None for a date, as our own patience is as good."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None


def _read(answer: Any, model: str) -> ChatReply:
    try:
        (choice,) = answer["choices"][:1]
        message, used = choice["message"], answer.get("usage") or {}
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            raise ContentRefused(f"{model} refuses this image or prompt")
        tokens = used.get("prompt_tokens", 0), used.get("completion_tokens", 0)
        text = str(message["content"] or "").encode("utf-8", "replace").decode()  # no half characters
        return ChatReply(text, *tokens, choice.get("finish_reason") == "length")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TemporaryError(f"an answer of unknown form ({type(error).__name__})") from error
