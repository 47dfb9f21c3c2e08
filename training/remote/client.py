"""Servers that speak OpenAI's chat completions: OpenAI itself, vLLM, llama.cpp and others.

`openai` sends the requests; its errors are sorted by what is to be done about them. The key is OPENAI_API_KEY
of the environment, and stands in no message, log or file.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

from m3agiqa.errors import InputError, M3AgiqaError

if TYPE_CHECKING:
    from openai import APIError

T = TypeVar("T")

KEY_VARIABLE = "OPENAI_API_KEY"
DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_BACKOFF = 60.0  # seconds between two attempts, where the server names none
MAX_QUOTE_LENGTH = 300  # characters of a server's error message
TOO_LONG = re.compile(r"context.?(length|window|size)|too long|maximum.*length", re.IGNORECASE)
NO_IMAGES = re.compile(
    r"at most 0 image|not a multi-?modal|mmproj|image.{0,40}(\bnot|\bonly|n't)\b.{0,20}support",
    re.IGNORECASE,
)

Message = dict[str, Any]

Sleep = Callable[[float], object]
"""Waits for some seconds; returns something true where that was cut short, as threading.Event.wait does."""


class ServerError(M3AgiqaError):
    """The server will answer nothing, however often it is asked; the message says what to mend."""


class RequestRejected(ServerError):
    """The server does not take this one request; it may take others."""


class ContentRefused(M3AgiqaError):
    """A safety filter will not let this sample pass; another model may."""


class TemporaryError(M3AgiqaError):
    """Worth asking again: overload, rate limit, time-out, an answer that makes no sense."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds to wait, where the server named them."""


@dataclass(frozen=True)
class ChatReply:
    """A model's answer, and the tokens that are paid for."""

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    truncated: bool = False
    """Whether it ended at the limit of tokens."""


class ChatServer:
    """A server and its models."""

    def __init__(self, url: str, timeout: float = 120) -> None:
        """`timeout` is in seconds, for one answer. Raises InputError for what is no URL, or no key."""
        from openai import DefaultHttpxClient, OpenAI, omit  # takes seconds, and few commands need it

        self.url = base_url(url)
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):  # errors of the client would quote it
            raise InputError(f"{KEY_VARIABLE} holds characters that no key has. Set it anew.")
        # `with_retries` asks again: its waits follow the settings, keep to the rate and end on Ctrl-C.
        self._client = OpenAI(
            api_key=self._key or "none",
            base_url=self.url,
            timeout=timeout,
            max_retries=0,
            http_client=DefaultHttpxClient(follow_redirects=False),
        )
        self._headers: Any = {} if self._key else {"Authorization": omit}

    def models(self) -> list[str] | None:
        """The models that it offers; None if it does not tell. Raises ServerError if it cannot be reached."""
        from openai import APIError

        try:
            names = [model.id for model in self._client.models.list(extra_headers=self._headers).data]
            return [str(name) for name in names] if all(names) else None
        except APIError as error:
            problem = self._translated(error, None)
        except (ValueError, AttributeError):
            problem = TemporaryError("an answer that is no JSON")
        except TypeError:
            return None
        if isinstance(problem, TemporaryError):
            raise ServerError(f"There is no answer from {self.url}: {problem}. Start it, or mend its URL.")
        if isinstance(problem, RequestRejected):
            return None
        raise problem

    def answer(self, model: str, messages: Sequence[Message], **options: Any) -> ChatReply:
        """The model's next turn. Raises ServerError, RequestRejected, ContentRefused or TemporaryError."""
        from openai import APIError

        try:
            completion = self._client.chat.completions.create(
                model=model, messages=list(messages), extra_headers=self._headers, **options
            )
            (choice,), usage = completion.choices[:1], completion.usage
            if choice.message.refusal or choice.finish_reason == "content_filter":
                raise ContentRefused(f"{model} refuses this image or prompt")
            text = (choice.message.content or "").encode("utf-8", "replace").decode()  # no lone surrogates
            tokens = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
            return ChatReply(text, *tokens, choice.finish_reason == "length")
        except APIError as error:
            raise self._translated(error, model) from None
        except (TypeError, ValueError, AttributeError) as error:
            raise TemporaryError(f"an answer of unknown form ({type(error).__name__})") from error

    def _translated(self, error: APIError, model: str | None) -> M3AgiqaError:
        """What an error of the client means; without a model, of a request for the models."""
        from openai import APIStatusError, APITimeoutError

        if isinstance(error, APITimeoutError):
            return TemporaryError("it took too long")
        if not isinstance(error, APIStatusError):
            return TemporaryError(str(error.__cause__ or error) or type(error.__cause__).__name__)
        status, code, said = error.status_code, error.code or "", self._said(error)
        if error.response.has_redirect_location:
            return ServerError(
                f"{self.url} has moved to {error.response.headers['location']}. Give that URL."
            )
        if model and NO_IMAGES.search(said):
            return ServerError(f"The model {model} at {self.url} takes no images: {said}")
        if status in (408, 425, 429) or status >= 500:
            return TemporaryError(f"status {status}", seconds(error.response.headers.get("retry-after")))
        if "content_policy" in code or "content_filter" in code:
            return ContentRefused(f"{model} refuses this image or prompt ({code})")
        if status in (401, 403):
            mend = f"It does not accept the key in {KEY_VARIABLE}" if self._key else f"Set {KEY_VARIABLE}"
            return ServerError(f"{self.url} rejects the request. {mend}; it says: {said}")
        if status == 404 and model:
            return ServerError(self._not_found(model))
        if status in (400, 413) and TOO_LONG.search(f"{code} {said}"):
            return RequestRejected(
                f"image and conversation are longer than {model} can read there (its server's limit of "
                f"context): {said}"
            )
        return RequestRejected(f"{model or self.url} rejects the request: {said}")

    def _not_found(self, model: str) -> str:
        offered = self.models()
        if offered is None:
            return f"There are no chat completions at {self.url}. Mend the URL; for vLLM it ends with /v1."
        if model in offered:
            return f"{self.url} offers {model}, but no chat completions."
        return f"{self.url} has no model {model}; it offers {', '.join(offered) or 'none'}."

    def _said(self, error: APIError) -> str:
        """An error's message in one line and without the key."""
        body = error.body if isinstance(error.body, dict) else {"message": error.body}
        message = body.get("message") or body.get("detail") or f"status {error.status_code}"
        said = " ".join(re.sub("<[^>]*>", " ", str(message)).split())
        return (said.replace(self._key, "…") if self._key else said)[:MAX_QUOTE_LENGTH]


def with_retries(ask: Callable[[], T], attempts: int, patience: float, sleep: Sleep) -> T:
    """What `ask` returns once the server is not busy any more; raises TemporaryError after the last attempt.

    `patience` seconds before the second attempt, twice as many before each further one, and more where the
    server says so.
    """
    for attempt in range(attempts - 1):
        try:
            return ask()
        except TemporaryError as error:
            backoff = min(MAX_BACKOFF, patience * 2**attempt) * random.uniform(0.5, 1.5)
            if sleep(max(backoff, error.retry_after or 0.0)):
                raise
    return ask()


def run_in_threads(
    work: Callable[[T], None], items: Iterable[T], count: int, stop: Event, progress: tqdm
) -> None:
    """Work through the items, `count` at a time in threads of their own.

    On any error and on Ctrl-C no more is begun, `stop` is set, and what is under way may finish.
    """
    with ThreadPoolExecutor(count) as pool:
        try:
            for future in as_completed([pool.submit(work, item) for item in items]):
                future.result()
                progress.update()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def base_url(text: str) -> str:
    """The URL of a server's API, which for a mere host ends with /v1. Raises InputError."""
    try:
        url = urlsplit(text.strip())
        host, port = url.hostname, url.port
    except ValueError as error:
        raise InputError(f"{text} is no URL: {error}") from error
    if url.scheme not in ("http", "https") or not host:
        raise InputError(f"{text} is no URL of a server; one looks like http://localhost:8000/v1.")
    if "@" in url.netloc:
        raise InputError(f"A server's URL must not hold a password; put the key into {KEY_VARIABLE}.")
    # One spelling, as answers that are kept are found by it.
    host = f"[{host}]" if ":" in host else host
    netloc = host if port in (None, DEFAULT_PORTS[url.scheme]) else f"{host}:{port}"
    path = url.path.rstrip("/").removesuffix("/chat/completions")
    return url._replace(netloc=netloc, path=path or "/v1").geturl()


def seconds(text: str | None) -> float | None:
    """Of a Retry-After header; None for a date, as our own patience is as good."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
