"""Stage describe by a server: a model there describes and rates the images, many requests at a time.

Its answers are kept in a folder as they come. The local backbone's hidden states over these conversations are
computed later (stage encode), and cached under keys that name the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import TypeVar

from m3agiqa.aspects import RATING_WORDS, Aspect, Rating
from m3agiqa.conversation import Conversation
from m3agiqa.errors import InputError
from m3agiqa.files import write_atomically
from training.data.variants import Variant
from training.parallel import Shard, progress_bar
from training.remote.append_log import AppendLog
from training.remote.client import (
    ChatReply,
    ChatServer,
    ContentRefused,
    Message,
    RequestRejected,
    ServerError,
    Sleep,
    TemporaryError,
    base_url,
    data_url,
    run_in_threads,
    with_retries,
)
from training.stages.describe import EncodedConversation
from training.stages.hidden_cache import Entry

T = TypeVar("T")

PROMPT_REVISION = 1
"""Raised whenever the same model would be asked differently."""
MAX_TOKENS = 256  # of an answer, as for local backbones
SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
RATING_TEMPERATURES = (0.0, 0.5, 1.0)
"""Of the rating word, one for each time that it is asked for: the same question would get the same answer."""
MODELS_FILE = "models.json"
MAX_FAILED_IN_A_ROW = 16
"""Conversations that failed one after another, at least, before nothing more is asked."""


@dataclass(frozen=True)
class ServerConfig:
    """A server that speaks OpenAI's chat completions, such as vLLM, and how hard it may be pressed."""

    url: str
    """Such as http://localhost:8000/v1. Its key is OPENAI_API_KEY of the environment, if it needs one."""
    model: str | None = None
    """Name of the model there; null: its only one."""
    at_once: int = 16
    """Requests under way at once. A GPU with room for them is used best by many; beyond what the server can
    hold, they wait there."""
    timeout: float = 300.0
    """Seconds for one answer, with the time that the request waits on the server."""
    attempts: int = 5
    """Requests for one answer before its conversation is given up for this run."""
    patience: float = 2.0
    """Seconds before the second attempt; doubled for each further one, up to a minute."""

    def __post_init__(self) -> None:
        for name in ("at_once", "attempts"):
            if getattr(self, name) < 1:
                raise InputError(f"server.{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("timeout", "patience"):
            if not getattr(self, name) > 0:
                raise InputError(f"server.{name} must be more than 0 seconds, not {getattr(self, name):g}.")
        if self.model is not None and not self.model.strip():
            raise InputError("server.model is empty; leave it out for the server's only model.")
        object.__setattr__(self, "url", base_url(self.url))


@dataclass(frozen=True)
class RemoteAnswer:
    """A line of the log: a description, or the rating word that came after it."""

    key: str
    description: str
    rating: str | None = None


@dataclass(frozen=True)
class RemoteConversation(EncodedConversation):
    """A conversation that a server's model has generated, cached like one that the backbone itself has."""

    rating: Rating
    model: str

    def key(self, identity: str) -> str:
        return self.variant.key(self.conversation.aspect, remote_identity(identity, self.model))

    def entry(self, identity: str) -> Entry:
        entry = super().entry(identity)
        return replace(entry, kind=self.variant.kind, rating=self.rating)


def remote_identity(identity: str, model: str) -> str:
    """What is in keys of the cache instead of the backbone's identity, where it reads what another wrote."""
    return f"{identity} reads {_author(model)}"


def _author(model: str) -> str:
    return f"served {PROMPT_REVISION} {model}"


def _key(case: Variant, aspect: Aspect, model: str) -> str:
    """Of an answer in the log, whatever backbone will read it."""
    return case.key(aspect, _author(model))


class RemoteDescriptions:
    """Conversations by a server's model, kept in a folder, so that the server is not needed any more."""

    def __init__(self, config: ServerConfig, folder: Path, sleep: Sleep | None = None) -> None:
        """`sleep` waits in place of the clock."""
        self.config, self.folder, self._sleep = config, folder, sleep

    @property
    def model(self) -> str:
        """The model's name. Raises InputError while the server was not asked yet which one it has."""
        model = self.config.model or self._known_models().get(self.config.url)
        if model is None:
            raise InputError(f"Nothing was described by {self.config.url} yet. Run `describe` first.")
        return model

    def missing(self, cases: Sequence[Variant]) -> list[tuple[Variant, Aspect]]:
        """Conversations that are not finished yet; all of them while the model is not known."""
        if not self.config.model and self.config.url not in self._known_models():
            return _pairs(cases)
        answers, model = self._answers(), self.model
        return [pair for pair in _pairs(cases) if not _is_rated(answers.get(_key(*pair, model)))]

    def describe(self, cases: Sequence[Variant], share: Shard | None = None) -> dict[str, str]:
        """Ask for what was not answered yet; returns why conversations failed, by what they are about.

        Raises ServerError where nothing gets through, after what was under way has been written down.
        """
        share = share or Shard()
        cases = share.of(cases)
        if not self.missing(cases):
            return {}
        server = ChatServer(self.config.url, self.config.timeout)
        self._find_model(server)
        todo, total = self.missing(cases), len(_pairs(cases))
        part = "" if share.count == 1 else f"-{share.index}-{share.count}"
        stop = Event()
        with (
            AppendLog(self.folder / f"answers{part}.jsonl", RemoteAnswer) as log,
            progress_bar(None, "describe", total=total, start=total - len(todo)) as progress,
        ):
            asking = _Asking(self.config, self.model, server, self._answers(), log, self._sleep or stop.wait)
            run_in_threads(asking.converse, todo, self.config.at_once, stop, progress)
        return asking.failed

    def conversations(self, cases: Sequence[Variant]) -> list[RemoteConversation]:
        """All conversations about the cases. Raises InputError while some are not finished."""
        missing, pairs = self.missing(cases), _pairs(cases)
        if missing:
            raise InputError(
                f"{len(missing):,} of {len(pairs):,} conversations were not described by {self.config.url} "
                "yet. Run `describe` first."
            )
        answers, model = self._answers(), self.model
        conversations = []
        for case, aspect in pairs:
            answer = answers[_key(case, aspect, model)]
            described = Conversation.open(aspect, case.prompt).describe(answer.description)
            conversations.append(RemoteConversation(case, described, Rating(answer.rating), model))
        return conversations

    def _answers(self) -> dict[str, RemoteAnswer]:
        """By key, with the rating word where that is known too."""
        answers: dict[str, RemoteAnswer] = {}
        for path in sorted(self.folder.glob("answers*.jsonl")):
            for row in AppendLog(path, RemoteAnswer).rows:
                if row.key not in answers or row.rating is not None:
                    answers[row.key] = row
        return answers

    def _find_model(self, server: ChatServer) -> None:
        """See that the server is there, and which model is meant."""
        offered = server.models()
        if self.config.model:
            return
        if offered is None:
            raise ServerError(f"{server.url} does not say which models it has; name one with --server-model.")
        if len(offered) != 1:
            raise ServerError(
                f"{server.url} has {'no model' if not offered else 'several models: ' + ', '.join(offered)}"
                f"{'' if not offered else '. Choose one with --server-model'}."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        models = {**self._known_models(), self.config.url: offered[0]}
        write_atomically(self.folder / MODELS_FILE, json.dumps(models))

    def _known_models(self) -> dict[str, str]:
        """The only model of each server that was asked for it."""
        path = self.folder / MODELS_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


class _Asking:
    """The threads' side: one conversation after another, and what became of them."""

    def __init__(
        self,
        config: ServerConfig,
        model: str,
        server: ChatServer,
        answers: dict[str, RemoteAnswer],
        log: AppendLog[RemoteAnswer],
        sleep: Sleep,
    ) -> None:
        self.config, self.model, self.server = config, model, server
        self.answers, self.log, self.sleep = answers, log, sleep
        self.failed: dict[str, str] = {}
        self._lock = Lock()
        self._failed_in_a_row = 0

    def converse(self, pair: tuple[Variant, Aspect]) -> None:
        """A conversation of two rounds, each answer into the log."""
        try:
            self._converse(*pair)
        except InputError as error:  # of the image, which no server has seen
            self.failed[_name(*pair)] = str(error)
        except (TemporaryError, ContentRefused, RequestRejected) as error:
            self.failed[_name(*pair)] = str(error)
            self._count_failure(str(error))
        else:
            self._failed_in_a_row = 0

    def _converse(self, case: Variant, aspect: Aspect) -> None:
        key = _key(case, aspect, self.model)
        picture = data_url(case.image(), "PNG", compress_level=1)  # nothing lost: its quality is judged
        opened = Conversation.open(aspect, case.prompt)
        if key in self.answers:
            text = self.answers[key].description
        else:
            text = self._ask(lambda: self._description(messages(opened, picture)))
            self.log.add(RemoteAnswer(key, text))
        rating = self._rating(messages(opened.describe(text), picture))
        self.log.add(RemoteAnswer(key, text, str(rating)))

    def _description(self, question: list[Message]) -> str:
        reply = self._answer(question, 0.0)
        text = (whole_sentences(reply.text) if reply.truncated else reply.text).strip()
        if not text:
            raise TemporaryError("the description is empty")
        return text

    def _rating(self, question: list[Message]) -> Rating:
        for temperature in RATING_TEMPERATURES:
            reply = self._ask(partial(self._answer, question, temperature))
            if rating := rating_in(reply.text):
                return rating
        raise TemporaryError(
            f"asked for one of [{', '.join(RATING_WORDS)}], it says {reply.text.strip()[:60]!r}"
        )

    def _ask(self, ask: Callable[[], T]) -> T:
        return with_retries(ask, self.config.attempts, self.config.patience, self.sleep)

    def _answer(self, question: list[Message], temperature: float) -> ChatReply:
        return self.server.answer(self.model, question, temperature=temperature, max_tokens=MAX_TOKENS)

    def _count_failure(self, reason: str) -> None:
        """Raises ServerError where nothing gets through any more."""
        with self._lock:
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= max(MAX_FAILED_IN_A_ROW, self.config.at_once):
                raise ServerError(
                    f"{self._failed_in_a_row} conversations in a row failed, the last one because {reason}. "
                    "What was answered is kept; mend the server, and the same command goes on."
                )


def _pairs(cases: Sequence[Variant]) -> list[tuple[Variant, Aspect]]:
    return [(case, aspect) for case in cases for aspect in case.aspects]


def _is_rated(answer: RemoteAnswer | None) -> bool:
    return answer is not None and bool(answer.rating)


def messages(conversation: Conversation, picture: str) -> list[Message]:
    """A conversation's turns, the image before the first one's text."""
    first, *others = conversation.turns
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": first.content}]
    return [{"role": first.role, "content": content}, *(asdict(turn) for turn in others)]


def rating_in(text: str) -> Rating | None:
    """The one rating word in an answer, whatever stands around it; None if there is none, or several."""
    ratings = {word for word in re.findall(r"[^\W_]+", text.lower()) if word in set(Rating)}
    return Rating(ratings.pop()) if len(ratings) == 1 else None


def whole_sentences(text: str) -> str:
    """What was cut off, up to its last whole sentence; all of it, if there is none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def _name(case: Variant, aspect: Aspect) -> str:
    prompts = {"unrelated": "with an unrelated prompt", "changed": "with a changed prompt"}
    return " ".join(filter(None, [case.sample.id, str(aspect), prompts.get(case.kind, case.damage)]))
