"""Stage distill: a teacher puts every sample's scores into words (paper, section III-A).

Replies are appended to a log as they come, each with its tokens, so that nothing is asked, or paid for,
twice: an interrupted run continues where it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event, Lock

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.samples import Sample
from m3agiqa.tables import on_scale
from training.data.worked_examples import WorkedExamples
from training.parallel import progress_bar
from training.remote.append_log import AppendLog
from training.remote.client import ContentRefused, Sleep, TemporaryError, run_in_threads, with_retries
from training.remote.teachers import Teacher, descriptions, examples_text, question

CHARACTERS_PER_TOKEN = 4  # about, in English


@dataclass(frozen=True)
class DistillConfig:
    """How hard a teacher may be pressed, and what it costs."""

    concurrency: int = 4
    """Requests under way at once."""
    per_minute: float = 60.0
    """Requests begun in a minute, over all of them."""
    attempts: int = 5
    """Requests for one sample and teacher before the sample is given up for this run."""
    patience: float = 2.0
    """Seconds before the second attempt; doubled for each further one, up to a minute."""
    input_price: float = 0.0
    """US dollars for a million tokens sent."""
    output_price: float = 0.0
    """US dollars for a million tokens received."""
    examples: int = 3
    """People's descriptions of other images in each request, as worked examples, where there are any."""

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise InputError(f"examples must be at least 0, not {self.examples}.")


@dataclass(frozen=True)
class TeacherReply:
    """One line of the log: a reply that was paid for, or a refusal that need not be asked for again."""

    id: str
    teacher: str
    text: str | None
    input_tokens: int = 0
    output_tokens: int = 0
    refusal: str | None = None


@dataclass(frozen=True)
class Summary:
    """What a run came to."""

    described: int
    refused: int
    failed: dict[str, str]
    """Why, by sample id; the same command tries them again."""
    input_tokens: int
    output_tokens: int
    dollars: float

    def __str__(self) -> str:
        parts = [f"{self.described:,} samples described"]
        if self.refused:
            parts.append(f"{self.refused:,} refused by every teacher")
        if self.failed:
            parts.append(f"{len(self.failed):,} failed (run again to retry)")
        tokens = f"{self.input_tokens:,} tokens sent, {self.output_tokens:,} received"
        return f"{', '.join(parts)}; {tokens}, ${self.dollars:.2f}."


class Replies(AppendLog[TeacherReply]):
    """All replies of a distillation so far."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, TeacherReply)
        self._refusals = {(row.id, row.teacher) for row in self.rows if row.refusal}

    def refused(self, sample: Sample, teacher: Teacher) -> bool:
        """Whether a teacher had refused a sample before."""
        return (sample.id, teacher.name) in self._refusals

    def descriptions(self, wanted: dict[str, list[Aspect]]) -> dict[str, dict[Aspect, str]]:
        """The last sensible answer for each of some samples."""
        latest = {}
        for reply in self.rows:
            if reply.text is not None and reply.id in wanted:
                try:
                    latest[reply.id] = descriptions(reply.text, wanted[reply.id])
                except TemporaryError:
                    continue  # paid for, but of no use
        return latest


def missing(samples: Sequence[Sample]) -> dict[str, list[Aspect]]:
    """Aspects that have a MOS and no description yet, by sample id; samples that lack none are left out."""
    lacking = {s.id: [a for a in Aspect if a in s.mos and a not in s.descriptions] for s in samples}
    return {name: aspects for name, aspects in lacking.items() if aspects}


@dataclass(frozen=True)
class TeacherRequest:
    """What is sent about a sample, beside its image."""

    sample: Sample
    text: str
    examples: list[Sample]
    """Of people, in the text."""


def plan(
    samples: Sequence[Sample], journal: Replies, scale: MosScale, examples: WorkedExamples | None = None
) -> Iterator[TeacherRequest]:
    """What would be sent (a dry run).

    Raises InputError before the first if a sample's MOS is not on the scale.
    """
    for sample in samples:
        for aspect, mos in sample.mos.items():
            on_scale(mos, scale, f"Sample {sample.id}: {aspect}")
    wanted = missing(samples)
    done = journal.descriptions(wanted)
    for sample in samples:
        if sample.id in wanted and sample.id not in done:
            nearest = examples.nearest(sample, wanted[sample.id]) if examples else []
            yield TeacherRequest(sample, question(sample, scale, nearest), nearest)


def planned_cost(requests: Sequence[TeacherRequest], config: DistillConfig) -> str:
    """How many requests and worked examples, and about what their text costs to send, in one sentence."""
    characters = sum(len(request.text) for request in requests)
    of_examples = sum(len(examples_text(request.examples)) for request in requests)
    tokens, more = (round(count / CHARACTERS_PER_TOKEN) for count in (characters, of_examples))
    count = sum(len(request.examples) for request in requests)
    text = f"{len(requests):,} requests would be sent, with about {tokens:,} tokens beside the images"
    if config.input_price:
        text += f" (${tokens * config.input_price / 1e6:.2f})"
    if count:
        carrying = sum(bool(request.examples) for request in requests)
        text += (
            f"; {count:,} worked examples by people in {carrying:,} of them, about {more:,} of these tokens"
        )
        if config.input_price:
            text += f" (${more * config.input_price / 1e6:.2f})"
    return f"{text}."


def distill(
    samples: Sequence[Sample],
    teachers: Sequence[Teacher],
    journal_file: Path,
    scale: MosScale,
    config: DistillConfig,
    sleep: Sleep | None = None,
    examples: WorkedExamples | None = None,
) -> tuple[list[Sample], Summary]:
    """Ask for all missing descriptions; the next teacher is asked what one before it refuses.

    Returns the samples with what is known now. Raises InputError for ids given twice and a MOS off the
    scale, before anything is asked; ServerError when a teacher will answer nothing at all (a wrong key,
    say), after what was under way has been written down. `sleep` waits in place of the clock. `examples` go
    into the requests.
    """
    if len({sample.id for sample in samples}) < len(samples):
        raise InputError("Two samples have the same id; answers could not be told apart.")
    journal = Replies(journal_file)
    before = len(journal.rows)
    todo = list(plan(samples, journal, scale, examples))
    wanted = missing(samples)
    failed: dict[str, str] = {}
    stop = Event()
    sleep = sleep or stop.wait
    pace = Pace(config.per_minute, sleep)

    def ask(request: TeacherRequest) -> None:
        sample, text = request.sample, request.text

        def explain(teacher: Teacher) -> None:
            pace.wait()
            reply = teacher.explain(sample, text)
            # First what was paid for, then what is made of it.
            journal.add(
                TeacherReply(sample.id, teacher.name, reply.text, reply.input_tokens, reply.output_tokens)
            )
            descriptions(reply.text, wanted[sample.id])

        for teacher in teachers:
            if journal.refused(sample, teacher):
                continue
            try:
                with_retries(partial(explain, teacher), config.attempts, config.patience, sleep)
                return
            except ContentRefused as error:
                journal.add(TeacherReply(sample.id, teacher.name, None, refusal=str(error)))
            except TemporaryError as error:
                failed[sample.id] = f"{teacher.name}: {error}"
                return

    with journal, progress_bar(None, "distill", total=len(wanted), start=len(wanted) - len(todo)) as progress:
        run_in_threads(ask, todo, config.concurrency, stop, progress)
    known = journal.descriptions(wanted)
    new = journal.rows[before:]
    sent, received = (sum(getattr(o, name) for o in new) for name in ("input_tokens", "output_tokens"))
    summary = Summary(
        described=len(known),
        refused=len(wanted) - len(known) - len(failed),
        failed=failed,
        input_tokens=sent,
        output_tokens=received,
        dollars=(sent * config.input_price + received * config.output_price) / 1e6,
    )
    filled = [replace(s, descriptions={**s.descriptions, **known.get(s.id, {})}) for s in samples]
    return filled, summary


class Pace:
    """Lets requests begin no faster than a rate; `wait` raises TemporaryError where it was cut short."""

    def __init__(self, per_minute: float, sleep: Sleep) -> None:
        self._interval, self._sleep = 60 / per_minute, sleep
        self._lock = Lock()
        self._next = time.monotonic()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(self._next, now)
            self._next = turn + self._interval
        if turn > now and self._sleep(turn - now):
            raise TemporaryError("interrupted")
