"""One visitor's assessment, from pressing the button to the last rating, and the way to end it."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotation.store import Database, exposures
from annotation.store.models import AnswersOf
from annotation.ui.access import Person
from annotation.ui.images import Upload
from annotation.ui.model_service import LoadState, ModelLoader, Observable, WaitingLine
from m3agiqa.aspects import Aspect
from m3agiqa.assessment import AspectResult, Assessment, DescriptionDelta
from m3agiqa.checkpoint.card import Card
from m3agiqa.conversation import normalized_prompt
from m3agiqa.errors import M3AgiqaError, Stopped
from m3agiqa.quality_map import QualityMap
from m3agiqa.ranking import Ranking

if TYPE_CHECKING:
    from m3agiqa.assessor import Assessor

log = logging.getLogger(__name__)

CLOCK_INTERVAL = 0.5  # seconds after which the page's clock moves although nothing else has


class RunStage(StrEnum):
    """Where a run stands; the last three are final."""

    STARTING = "starting"
    LOADING = "loading"
    WAITING = "waiting"
    ASSESSING = "assessing"
    STOPPING = "stopping"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class RunState:
    """All that the page shows of a run."""

    stage: RunStage = RunStage.STARTING
    has_prompt: bool = True
    load: LoadState = field(default_factory=LoadState)
    place: int = 0
    """Place in the waiting line; 2 is next."""
    descriptions: Mapping[Aspect, str] = field(default_factory=dict)
    results: Mapping[Aspect, AspectResult] = field(default_factory=dict)
    card: Card | None = None
    """Whose judgement it is, once a model has taken it up."""
    assessment: Assessment | None = None
    ranking: Ranking | None = None
    """Of several images that are compared, as far as they have been judged."""
    quality_map: QualityMap | None = None
    scored: int = 0
    """Rows of a table, or parts of an image, that have been judged, and how many failed, of how many."""
    failed: int = 0
    total: int = 0
    counted: str = "images"
    """What these are."""
    notes: tuple[str, ...] = ()
    """Sentences about the table, and which files it does not list."""
    error: str = ""

    @property
    def over(self) -> bool:
        return self.stage in (RunStage.FINISHED, RunStage.STOPPED, RunStage.FAILED)


class ModelRun(Observable[RunState], ABC):
    """Work of the model in a thread of its own, so that neither page nor network can slow it."""

    def __init__(self, prompt: str, loader: ModelLoader, line: WaitingLine) -> None:
        super().__init__(RunState(has_prompt=bool(prompt.strip())))
        self.prompt = prompt
        self._loader = loader
        self._line = line
        self.discarded = False
        """Whether the page shows another image by now, so that nobody wants to see this one's result."""
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._ended: float | None = None

    def start(self) -> None:
        """Begin; whoever makes the current request is the one whose share of a GPU is used."""
        threading.Thread(
            target=copy_context().run, args=(self._work,), name="assessment", daemon=True
        ).start()

    def stop(self) -> None:
        """End it wherever it is: loading, in the line, or before the model's next token."""
        self._stop.set()
        self._loader.wake()
        self._line.wake()
        self.wake()

    def told(self, state: RunState) -> RunState:
        """As the page tells it: after `stop` the model may first have to end its look at the image."""
        return replace(state, stage=RunStage.STOPPING) if self._stop.is_set() and not state.over else state

    @property
    @abstractmethod
    def subject(self) -> str:
        """What is judged, for the log."""

    @property
    @abstractmethod
    def shown(self) -> Iterator[tuple[Path, str, Iterable[Aspect]]]:
        """Images, their prompts, and the aspects of which the model's answer has been told."""

    @property
    def seconds(self) -> float:
        """Time since the model took it up, or since the button was pressed while it has not."""
        return (self._ended or time.monotonic()) - self._began

    def _work(self) -> None:
        try:
            self._take_turn()
        except Stopped:
            self._update(stage=RunStage.STOPPED)
        except M3AgiqaError as error:
            self._update(stage=RunStage.FAILED, error=str(error))
        except Exception:  # a bug; the visitor gets a sentence, the log the traceback
            log.exception("Assessing %s failed", self.subject)
            sentence = "Something unexpected went wrong with this image; the app's log says more."
            self._update(stage=RunStage.FAILED, error=sentence)

    def _take_turn(self) -> None:
        # First what needs no waiting: bad input is reported at once, not at the end of the line.
        self._check()
        assessor = self._loader.wait(self._stop.is_set, self._while_loading)
        with self._turn(assessor):
            self._judge(assessor)

    @contextmanager
    def _turn(self, assessor: Assessor) -> Iterator[None]:
        with self._line.turn(self._stop.is_set, self._in_line):
            self._began = time.monotonic()
            self._update(stage=RunStage.ASSESSING, card=assessor.card)
            yield

    def _check(self) -> None:
        """Raises InputError for what cannot be judged."""

    def _judge(self, assessor: Assessor) -> None:
        """Have the model work in one turn, and update the state, at last to RunStage.FINISHED."""
        raise NotImplementedError  # by those that take several turns (ScoreRun)

    def _while_loading(self, load: LoadState) -> None:
        self._update(stage=RunStage.LOADING, load=load)

    def _in_line(self, place: int) -> None:
        if (self.state.stage, self.state.place) != (RunStage.WAITING, place):
            self._update(stage=RunStage.WAITING, place=place)

    def _update(self, **changes: Any) -> None:
        """Only this run's thread does."""
        state = replace(self.state, **changes)
        if state.over:
            self._ended = time.monotonic()
        self.set_state(state)


class Run(ModelRun):
    """An assessment of one image."""

    def __init__(self, upload: Upload, prompt: str, loader: ModelLoader, line: WaitingLine) -> None:
        super().__init__(prompt, loader, line)
        self.upload = upload

    @property
    def subject(self) -> str:
        return self.upload.name

    @property
    def shown(self) -> Iterator[tuple[Path, str, Iterable[Aspect]]]:
        yield self.upload.path, self.prompt, self.state.descriptions

    def _check(self) -> None:
        self.upload.image()

    def _judge(self, assessor: Assessor) -> None:
        prompt = normalized_prompt(self.prompt)
        for event in assessor.stream(self.upload.image(), prompt, stop=self._stop.is_set):
            match event:
                case DescriptionDelta(aspect, text):
                    description = self.state.descriptions.get(aspect, "") + text
                    self._update(descriptions={**self.state.descriptions, aspect: description})
                case AspectResult(aspect):
                    self._update(results={**self.state.results, aspect: event})
                case Assessment():
                    self._update(stage=RunStage.FINISHED, assessment=replace(event, image=self.upload.name))


def note_shown(database: Database, person: Person, run: ModelRun) -> None:
    """Whoever has read what the model writes of an image in the store does not score it blind."""
    try:
        cases = [(path, prompt, aspect) for path, prompt, aspects in run.shown for aspect in aspects]
        with database.reading() as session:
            shown = chain.from_iterable(exposures.of_images(session, cases))
        exposures.note(database, person.name, AnswersOf.MODEL, shown)
    except M3AgiqaError as error:
        log.warning("What %s has read cannot be recorded: %s", person.name, error)


class Runs:
    """The runs of all visitors, at most one each."""

    def __init__(self, loader: ModelLoader, line: WaitingLine) -> None:
        self.loader = loader
        self.line = line
        self._by_visitor: dict[str, ModelRun] = {}

    def begin(self, visitor: str, upload: Upload, prompt: str) -> Run:
        """Start a visitor's run; an older one of theirs is stopped."""
        run = Run(upload, prompt, self.loader, self.line)
        self.start(visitor, run)
        return run

    def start(self, visitor: str, run: ModelRun) -> None:
        """Start a run of another kind; the visitor's older one is stopped."""
        self.stop(visitor)
        self._by_visitor[visitor] = run
        run.start()

    def stop(self, visitor: str) -> None:
        """Stop the run of this visitor, if there is one, and nobody else's."""
        if (run := self._by_visitor.pop(visitor, None)) is not None:
            run.stop()

    def discard(self, visitor: str) -> None:
        """Stop the run of a visitor whose page shows another image."""
        if (run := self._by_visitor.get(visitor)) is not None:
            run.discarded = True
            self.stop(visitor)

    def forget(self, visitor: str, run: ModelRun) -> None:
        """Stop a run that nobody watches any more."""
        run.stop()
        if self._by_visitor.get(visitor) is run:
            del self._by_visitor[visitor]
