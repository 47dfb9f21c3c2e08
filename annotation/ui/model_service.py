"""The one model that judges here: loading it, taking turns at it, and the choice of another one."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from html import escape
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import gradio as gr

from annotation.settings import Settings, as_variable
from annotation.store import Store
from annotation.store.log import ever_promoted, log_action, promote, promoted
from annotation.ui import theme, zero_gpu
from m3agiqa.aspects import Aspect, aspects_text
from m3agiqa.checkpoint.card import Card, local_checkpoint, read_card, shipped
from m3agiqa.checkpoint.comparison import Comparison
from m3agiqa.checkpoint.registry import candidates, discard, registered
from m3agiqa.download.pypi import Progress
from m3agiqa.errors import InputError, M3AgiqaError, Stopped, TooLittleMemory, WeightsError

if TYPE_CHECKING:
    from m3agiqa.assessor import Assessor

log = logging.getLogger(__name__)

UPDATE_INTERVAL = 0.1  # seconds between two updates of a page
BANNER_INTERVAL = 1.0  # seconds between two questions of a page how far the model is

# --- states that pages follow ------------------------------------------------------------------


class _State(Protocol):
    @property
    def over(self) -> bool: ...


State = TypeVar("State", bound=_State)


class Observable(Generic[State]):
    """A state that a thread replaces as a whole, and that threads and pages can wait for."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._changed = threading.Condition()
        self._followers: set[Callable[[], None]] = set()

    def set_state(self, state: State) -> None:
        with self._changed:
            self.state = state
            self.wake()

    def wake(self) -> None:
        """Have everybody who waits ask their `stop` again, and those who follow look at the state again."""
        with self._changed:
            self._changed.notify_all()
            for wake in self._followers:
                wake()

    async def follow(self, heartbeat: float | None = None) -> AsyncIterator[State]:
        """The states as they change, the final one last; the same one again after `heartbeat` seconds.

        No thread is blocked meanwhile, as many visitors may wait at once and Stop must get through.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(changed.set)

        with self._changed:
            self._followers.add(wake)
        try:
            while True:
                changed.clear()
                state, shown_at = self.state, loop.time()
                yield state
                if state.over:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), heartbeat)
                if not self.state.over:
                    await asyncio.sleep(shown_at + UPDATE_INTERVAL - loop.time())
        finally:
            with self._changed:
                self._followers.discard(wake)


# --- loading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadState:
    """How far loading is; exactly one of `assessor` and `error` is set once it has ended."""

    message: str = "Starting"
    fraction: float = 0.0
    assessor: Assessor | None = None
    error: M3AgiqaError | None = None
    notice: str = ""
    """Why it is not the model that was to be served."""

    @property
    def over(self) -> bool:
        return self.assessor is not None or self.error is not None

    @property
    def progress(self) -> str:
        return f"{self.message}, {self.fraction:.0%}" if self.fraction else self.message


def from_registry(settings: Settings) -> Callable[[str, Progress], Assessor]:
    """Loads a registered model by its name there, and any other by name or path, placed as settings say."""

    def load(name: str, progress: Progress) -> Assessor:
        from m3agiqa.assessor import Assessor  # takes seconds, in which the page can answer already

        try:
            with zero_gpu.loading():
                assessor = Assessor.from_pretrained(
                    registered(name, settings.models) or name,
                    progress,
                    quantize=settings.quantize,
                    device=settings.device,
                    revision=settings.revision_of(name),
                )
        except M3AgiqaError as error:
            raise type(error)(error.worded(as_variable) + _advice(error, name, settings)) from error
        return zero_gpu.on_demand(assessor, settings.device)

    return load


def _advice(error: M3AgiqaError, name: str, settings: Settings) -> str:
    """What whoever runs the server may do, beside what the error says."""
    advice = ""
    if isinstance(error, TooLittleMemory) and os.environ.get("SPACE_ID"):
        advice += " In this Space's Settings, larger hardware can be chosen, ZeroGPU among it."
    if name == settings.model != Settings.model:
        advice += f" Without M3AGIQA_MODEL, {Settings.model} judges here."
    return advice


class ModelLoader(Observable[LoadState]):
    """Loads one model at most once at a time; a failed load can be started again."""

    def __init__(
        self,
        name: str,
        load: Callable[[str, Progress], Assessor],
        instead: str | None = None,
    ) -> None:
        """`instead`: the model to serve if this one, which was promoted, cannot be loaded."""
        super().__init__(LoadState())
        self.name = name
        self._load = load
        self._instead = instead
        self._thread: threading.Thread | None = None
        """The thread whose model shall be served; what others load is dropped."""
        self.switching = threading.Lock()
        """Held while another model is taken into service, and while one is discarded."""

    def start(self) -> None:
        """Begin to load in a background thread, unless that has happened already."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="model-loader", daemon=True)
                self._thread.start()

    def switch(self, name: str, confirm: Callable[[], None] = lambda: None) -> None:
        """Load another model in the calling thread and serve it from then on.

        Whoever has the old one finishes with it. `confirm` is called when the new one is loaded and not yet
        served; if that or the loading fails, the error is raised and the old one stays in service.
        """
        with self.switching:
            assessor = self._loaded(name, lambda message, fraction: None)
            confirm()
            with self._changed:
                self._thread = threading.current_thread()  # drops what another one is still loading
                self._set_if_wanted(LoadState("Ready", 1.0, assessor=assessor), name)

    def retry(self) -> None:
        """Begin anew if loading has failed, e.g. because the network was away."""
        with self._changed:
            if self.state.error is not None:
                self.set_state(LoadState())
                self._thread = None
        self.start()

    def wait(self, stop: Callable[[], bool], report: Callable[[LoadState], None]) -> Assessor:
        """The loaded model. Raises what loading raised, and Stopped once `stop` answers True; see `wake`."""
        self.retry()
        with self._changed:
            while not (state := self.state).over:
                if stop():
                    raise Stopped("Stopped while the model was loading.")
                report(state)
                self._changed.wait()
        if state.error is not None:
            raise state.error
        assert state.assessor is not None
        return state.assessor

    def _run(self) -> None:
        def progress(message: str, fraction: float) -> None:
            self._set_if_wanted(replace(self.state, message=message, fraction=fraction))

        notice = ""
        for name in dict.fromkeys((self.name, self._instead or self.name)):
            try:
                state = LoadState("Ready", 1.0, assessor=self._loaded(name, progress), notice=notice)
                break
            except M3AgiqaError as error:
                log.warning("The model %s cannot be loaded: %s", name, error)
                state = LoadState(error=error, notice=notice)
                notice = f"{Path(name).name} was promoted, but cannot be served. {error}"
        self._set_if_wanted(state, name if state.assessor else None)

    def _set_if_wanted(self, state: LoadState, name: str | None = None) -> None:
        with self._changed:
            if self._thread is threading.current_thread():
                self.name = name or self.name
                self.set_state(state)

    def _loaded(self, name: str, progress: Progress) -> Assessor:
        """Raises M3AgiqaError, whatever went wrong: a page that waits for ever would hide it."""
        try:
            return self._load(name, progress)
        except M3AgiqaError:
            raise
        except Exception as error:
            log.exception("Loading the model %s failed", name)
            raise WeightsError(f"The model {name} could not be loaded; the app's log says why.") from error


# --- turns -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ticket:
    """Somebody's place in the waiting line."""

    stop: Callable[[], bool]


class WaitingLine:
    """First come, first served: visitors take turns at the model; whoever stops waiting leaves the line."""

    def __init__(self) -> None:
        self._tickets: deque[Ticket] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, stop: Callable[[], bool], on_place: Callable[[int], None]) -> Iterator[None]:
        """Wait until it is one's turn and keep it for the `with` block.

        `on_place` hears the place in the line (2 is next) while waiting, whenever it may have changed; who
        has been stopped, but is not done yet, does not count. Raises Stopped once `stop` answers True; it is
        asked when the line changes, and after `wake`.
        """
        ticket = Ticket(stop)
        with self._changed:
            self._tickets.append(ticket)
        try:
            with self._changed:
                while not stop() and self._tickets[0] is not ticket:
                    before = islice(self._tickets, self._tickets.index(ticket))
                    on_place(1 + sum(not other.stop() for other in before))
                    self._changed.wait()
            if stop():
                raise Stopped("Stopped while waiting.")
            yield
        finally:
            with self._changed:
                self._tickets.remove(ticket)
                self._changed.notify_all()

    def wake(self) -> None:
        """Have everybody who waits ask their `stop` again."""
        with self._changed:
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._tickets)


# --- which model -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServableModel:
    """A model that may be put into service."""

    name: str
    """In the registry, or what M3AGIQA_MODEL may be set to."""
    card: Card | None
    """None if the model has to be loaded before it is known."""
    registered_at: datetime | None = None
    """None for those that were not registered here."""
    comparison: Comparison | None = None
    lost: tuple[Aspect, ...] = ()
    """Aspects that the model in service judges and this one does not."""

    @property
    def title(self) -> str:
        return self.card.title if self.card else display_name(self.name)

    @property
    def doubt(self) -> str:
        """Why a model that was trained here is not known to be better than the one before; "" if it is."""
        if self.registered_at is None:
            return ""
        doubt = self.comparison.doubt if self.comparison else "it was compared with no other model"
        lost = f"it does not judge {aspects_text(self.lost)}, as the one in service does" if self.lost else ""
        return "; ".join(filter(None, (doubt, lost)))


def model_to_serve(store: Store, settings: Settings) -> str:
    """The model that was promoted last, or the settings' where there is none. Raises StoreError."""
    with store.database.reading() as session:
        return promoted(session) or settings.model


def servable_models(settings: Settings, loader: ModelLoader) -> list[ServableModel]:
    """Registered models, the newest first, then that of the settings and those that are shipped."""
    models = [
        ServableModel(each.name, each.card, each.registered_at, each.comparison, _lost(loader, each.card))
        for each in candidates(settings.models)
    ]
    listed = {model.name for model in models}
    others = dict.fromkeys((settings.model, *shipped()))
    return models + [ServableModel(name, _card(name, loader)) for name in others if name not in listed]


def servable(settings: Settings, loader: ModelLoader, name: str) -> ServableModel:
    """The model of this display name. Raises InputError if there is none any more."""
    for model in servable_models(settings, loader):
        if display_name(model.name) == name:
            return model
    raise InputError("This model is no longer registered; choose another.")


def _lost(loader: ModelLoader, card: Card) -> tuple[Aspect, ...]:
    served = loader.state.assessor
    judged = served.card.predictors if served is not None else {}
    return tuple(aspect for aspect in judged if aspect not in card.predictors)


def _card(name: str, loader: ModelLoader) -> Card | None:
    """A model's card, if it can be had without a download."""
    folder = local_checkpoint(name)
    if folder is not None:
        try:
            return read_card(folder, verify=False)
        except WeightsError:
            return None  # what is wrong will be said when it is loaded
    served = loader.state.assessor
    return served.card if served is not None and loader.name == name else None


def display_name(name: str) -> str:
    """A model's name as pages have it: of a path on the server they know the last part only."""
    last = Path(name).name
    return name if name == last else f"…/{last}"


class Unconfirmed(InputError):
    """To serve a model that is not known to be better, or to delete one, takes a second, explicit wish."""


def promote_model(
    loader: ModelLoader, store: Store, settings: Settings, name: str, annotator: str, confirmed: bool = False
) -> None:
    """Load the model of this display name, store the decision, and only then serve the model.

    Raises Unconfirmed for one that is in doubt and not `confirmed`. If any of the rest fails, M3AgiqaError is
    raised and everything stays as it was.
    """
    model = servable(settings, loader, name)
    if model.doubt and not confirmed:
        raise Unconfirmed(
            f"{model.title} is not better: {model.doubt}. Press again to serve it all the same."
        )
    chosen = model.name
    loader.switch(
        chosen, lambda: store.database.transact(lambda session: promote(session, chosen, annotator))
    )


def discard_model(
    loader: ModelLoader, store: Store, settings: Settings, name: str, annotator: str, confirmed: bool = False
) -> None:
    """Delete a registered model that was never in service, so that every earlier one can be gone back to.

    Raises Unconfirmed until it is `confirmed`, and M3AgiqaError if it cannot be.
    """
    name = Path(name).name
    with loader.switching:
        with store.database.reading() as session:
            kept = ever_promoted(session) | {loader.name}
        if name in kept:
            raise InputError(f"{name} has been in service, so it is kept to be gone back to.")
        if not confirmed:
            raise Unconfirmed(f"{name} is then deleted for good. Press again to discard it.")
        discard(name, settings.models)
    store.database.transact(lambda session: log_action(session, annotator, "discard model", model=name))


# --- the line on top of the page ---------------------------------------------------------------


def banner_html(load: LoadState) -> str:
    """How loading goes; in the end which model judges and what it learned from, or why there is none."""
    notice = f'<p class="failed" role="alert">{escape(load.notice)}</p>' if load.notice else ""
    if load.error is not None:
        failure = escape(f"{load.error} Assessing an image tries it again.")
        return f'{notice}<p class="failed" role="alert">{failure}</p>'
    if load.assessor is not None:
        card = load.assessor.card
        learned_from = f"<p>Learned from {escape(card.learned_from)}.</p>"
        title = f"<summary>Model <b>{escape(card.title)}</b></summary>"
        return f'<details class="banner">{title}{learned_from}</details>{notice}'
    value = f' value="{load.fraction:.3f}"' if load.fraction else ""  # without a value the bar wanders
    return (
        f'<div class="banner loading"><label for="loading">{escape(load.progress)}</label>'
        f'<progress id="loading" max="1"{value}></progress></div>'
    )


def model_banner(loader: ModelLoader) -> gr.HTML:
    """Build the line."""
    return theme.html(banner_html(loader.state), elem_id="model")


def follow_model(loader: ModelLoader, banner: gr.HTML, demo: gr.Blocks, tabs: Sequence[gr.Tab]) -> None:
    """Let the line follow the model whenever the page or a tab is opened; loading starts, if need be.

    While it loads, pages ask again and again: a stream for each would take up the browser's few connections.
    """
    again = gr.Timer(BANNER_INTERVAL, active=False)

    def follow() -> tuple[str, gr.Timer]:
        loader.start()
        state = loader.state
        return banner_html(state), gr.Timer(active=not state.over)

    gr.on(
        [demo.load, *(tab.select for tab in tabs), again.tick],
        follow,
        outputs=[banner, again],
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )
