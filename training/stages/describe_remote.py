"""Stage describe by a server: a model there speaks about the cases, many at a time.

Its answers are kept in a folder as they come. What the local backbone holds in mind over these conversations
is read later (stage encode), and kept under keys that say who spoke.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event, Lock
from typing import TypeVar

from m3agiqa.aspects import RATINGS, Aspect, Rating
from m3agiqa.conversation import Conversation
from m3agiqa.errors import InputError
from m3agiqa.files import write_atomically
from training.data.variants import Variant
from training.parallel import Shard
from training.progress import bar
from training.remote.append_log import AppendLog
from training.remote.asking import (
    ChatReply,
    ContentRefused,
    RequestRejected,
    ServerError,
    Sleep,
    TemporaryError,
    run_in_threads,
    with_retries,
)
from training.remote.client import ChatServer, Message, base_url, data_url
from training.stages.encode import Telling
from training.stages.hidden_cache import Entry

T = TypeVar("T")

REVISION = 1
"""Raised whenever the same model would be asked differently."""
MAX_TOKENS = 256  # of a description, as local backbones have it
SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
TEMPERATURES = (0.0, 0.5, 1.0)
"""Of the rating word, one for each time that it is asked for: the same question would get the same answer."""
MODEL_FILE = "models.json"
IN_A_ROW = 16
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
class Answer:
    """A line of the journal: a description, or the rating word that came after it."""

    key: str
    description: str
    rating: str | None = None


@dataclass(frozen=True)
class Heard(Telling):
    """A conversation that a server's model has spoken, kept like one that the backbone itself has."""

    rating: Rating
    model: str

    def key(self, identity: str) -> str:
        return self.case.key(self.conversation.aspect, heard_by(identity, self.model))

    def entry(self, identity: str) -> Entry:
        case, (_, said, _) = self.case, self.conversation.turns
        return Entry(
            key=self.key(identity),
            sample=case.sample.id,
            aspect=self.conversation.aspect,
            kind=case.kind,
            damage=case.damage,
            prompt=case.prompt,
            description=said.content,
            rating=self.rating,
        )


def heard_by(identity: str, model: str) -> str:
    """What is in keys of the cache instead of the backbone's identity, where it reads what another said."""
    return f"{identity} reads {_speaker(model)}"


def _speaker(model: str) -> str:
    return f"served {REVISION} {model}"


def _key(case: Variant, aspect: Aspect, model: str) -> str:
    """Of an answer in the journal, whatever backbone will read it."""
    return case.key(aspect, _speaker(model))


class Served:
    """A server's model as speaker; a folder holds what it has said, so that it is not needed any more."""

    def __init__(self, config: ServerConfig, folder: Path, sleep: Sleep | None = None) -> None:
        """`sleep` waits in place of the clock."""
        self.config, self.folder, self._sleep = config, folder, sleep

    @property
    def model(self) -> str:
        """The model's name. Raises InputError while the server was not asked yet which one it has."""
        known = self.config.model or self._noted().get(self.config.url)
        if known is None:
            raise InputError(f"Nothing was described by {self.config.url} yet. Run `describe` first.")
        return known

    @cached_property
    def said(self) -> dict[str, Answer]:
        """Answers by key, with the rating word where that is known too."""
        found: dict[str, Answer] = {}
        for path in sorted(self.folder.glob("answers*.jsonl")):
            for row in AppendLog(path, Answer).rows:
                if row.key not in found or row.rating is not None:
                    found[row.key] = row
        return found

    def missing(self, cases: Sequence[Variant]) -> list[tuple[Variant, Aspect]]:
        """Conversations that are not finished yet; all of them while the model is not known."""
        wanted = [(case, aspect) for case in cases for aspect in case.aspects]
        if not self.config.model and self.config.url not in self._noted():
            return wanted
        model = self.model
        return [each for each in wanted if self._finished(*each, model) is None]

    def speak(self, cases: Sequence[Variant], share: Shard | None = None) -> dict[str, str]:
        """Ask for what was not answered yet; returns why conversations failed, by what they are about.

        Raises ServerError where nothing gets through, after what was under way has been written down.
        """
        share = share or Shard()
        mine = share.of(cases)
        if not self.missing(mine):
            return {}
        server = ChatServer(self.config.url, self.config.timeout)
        self._find_model(server)
        todo, total = self.missing(mine), sum(len(case.aspects) for case in mine)
        part = "" if share.count == 1 else f"-{share.index}-{share.count}"
        stop = Event()
        with (
            AppendLog(self.folder / f"answers{part}.jsonl", Answer) as journal,
            bar(None, "describe", total=total, start=total - len(todo)) as progress,
        ):
            asking = _Asking(self, server, journal, self._sleep or stop.wait)
            try:
                run_in_threads(asking.hold, todo, self.config.at_once, stop, progress)
            finally:
                self.__dict__.pop("said", None)
        return asking.failed

    def heard(self, cases: Sequence[Variant]) -> list[Heard]:
        """All conversations about the cases. Raises InputError while some are not finished."""
        missing = self.missing(cases)
        if missing:
            wanted = sum(len(case.aspects) for case in cases)
            raise InputError(
                f"{len(missing):,} of {wanted:,} conversations were not described by {self.config.url} yet. "
                "Run `describe` first."
            )
        model = self.model
        return [self._heard(case, aspect, model) for case in cases for aspect in case.aspects]

    def _heard(self, case: Variant, aspect: Aspect, model: str) -> Heard:
        answer = self._finished(case, aspect, model)
        told = Conversation.open(aspect, case.prompt).describe(answer.description)
        return Heard(case, told, Rating(answer.rating), model)

    def _finished(self, case: Variant, aspect: Aspect, model: str) -> Answer | None:
        found = self.said.get(_key(case, aspect, model))
        return found if found and found.rating else None

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
        write_atomically(self.folder / MODEL_FILE, json.dumps({**self._noted(), self.config.url: offered[0]}))

    def _noted(self) -> dict[str, str]:
        """The only model of each server that was asked for it."""
        path = self.folder / MODEL_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


class _Asking:
    """The threads' side: one conversation after another, and what became of them."""

    def __init__(self, served: Served, server: ChatServer, journal: AppendLog[Answer], sleep: Sleep) -> None:
        self.config, self.model, self.said = served.config, served.model, served.said
        self.server, self.journal, self.sleep = server, journal, sleep
        self.failed: dict[str, str] = {}
        self._lock = Lock()
        self._in_a_row = 0

    def hold(self, each: tuple[Variant, Aspect]) -> None:
        """A conversation of two rounds, each answer into the journal."""
        try:
            self._hold(*each)
        except InputError as error:  # of the image, which no server has seen
            self.failed[_name(*each)] = str(error)
        except (TemporaryError, ContentRefused, RequestRejected) as error:
            self.failed[_name(*each)] = str(error)
            self._count(str(error))
        else:
            self._in_a_row = 0

    def _hold(self, case: Variant, aspect: Aspect) -> None:
        key = _key(case, aspect, self.model)
        known = self.said.get(key)
        picture = data_url(case.image(), "PNG", compress_level=1)  # nothing lost: its quality is judged
        opened = Conversation.open(aspect, case.prompt)
        text = known.description if known else self._ask(lambda: self._description(opened, picture))
        if known is None:
            self.journal.add(Answer(key, text))
        rating = self._rating(messages(opened.describe(text), picture))
        self.journal.add(Answer(key, text, str(rating)))

    def _description(self, opened: Conversation, picture: str) -> str:
        reply = self._answer(messages(opened, picture), 0.0)
        text = (whole_sentences(reply.text) if reply.cut else reply.text).strip()
        if not text:
            raise TemporaryError("the description is empty")
        return text

    def _rating(self, asked: list[Message]) -> Rating:
        for temperature in TEMPERATURES:
            reply = self._ask(lambda heat=temperature: self._answer(asked, heat))
            if rating := rating_in(reply.text):
                return rating
        raise TemporaryError(f"asked for one of [{', '.join(RATINGS)}], it says {reply.text.strip()[:60]!r}")

    def _ask(self, ask: Callable[[], T]) -> T:
        return with_retries(ask, self.config.attempts, self.config.patience, self.sleep)

    def _answer(self, asked: list[Message], temperature: float) -> ChatReply:
        return self.server.answer(self.model, asked, temperature=temperature, max_tokens=MAX_TOKENS)

    def _count(self, reason: str) -> None:
        """Raises ServerError where nothing gets through any more."""
        with self._lock:
            self._in_a_row += 1
            if self._in_a_row >= max(IN_A_ROW, self.config.at_once):
                raise ServerError(
                    f"{self._in_a_row} conversations in a row failed, the last one because {reason}. What "
                    "was answered is kept; mend the server, and the same command goes on."
                )


def messages(told: Conversation, picture: str) -> list[Message]:
    """A conversation's turns, the image before the first one's text."""
    first, *others = told.turns
    seen = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": first.content}]
    return [
        {"role": first.role, "content": seen},
        *({"role": turn.role, "content": turn.content} for turn in others),
    ]


def rating_in(text: str) -> Rating | None:
    """The one rating word in an answer, whatever stands around it; None if there is none, or several."""
    found = {word for word in re.findall(r"[^\W_]+", text.lower()) if word in set(Rating)}
    return Rating(found.pop()) if len(found) == 1 else None


def whole_sentences(text: str) -> str:
    """What was cut off, up to its last whole sentence; all of it, if there is none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def _name(case: Variant, aspect: Aspect) -> str:
    unlike = {"unrelated": "with an unrelated prompt", "changed": "with a changed prompt"}.get(
        case.kind, case.damage
    )
    return " ".join(filter(None, [case.sample.id, str(aspect), unlike]))
