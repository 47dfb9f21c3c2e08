"""The model, loaded in the background while the page is already there."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from annotation.settings import Settings, as_variables
from annotation.ui import zero_gpu
from m3agiqa.assessor import Assessor
from m3agiqa.checkpoint.registry import registered
from m3agiqa.download.pypi import Progress
from m3agiqa.errors import M3AgiqaError, Stopped, TooLittleMemory, WeightsError

log = logging.getLogger(__name__)

POLL = 0.1  # seconds


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


def from_registry(settings: Settings) -> Callable[[str, Progress], Assessor]:
    """Loads a registered model by its name there, and any other by name or path, placed as settings say."""

    def load(name: str, progress: Progress) -> Assessor:
        try:
            with zero_gpu.loading():
                assessor = Assessor.from_pretrained(
                    registered(name, settings.models) or name,
                    progress,
                    quantize=settings.quantize,
                    device=settings.device,
                    revision=settings.revision if name == settings.model else None,
                )
        except M3AgiqaError as error:
            raise type(error)(as_variables(str(error)) + _ways_out(error, name, settings)) from error
        return zero_gpu.on_demand(assessor, settings.device)

    return load


def _ways_out(error: M3AgiqaError, name: str, settings: Settings) -> str:
    """What whoever runs the server may do, beside what the error says."""
    said = ""
    if isinstance(error, TooLittleMemory) and "SPACE_ID" in os.environ:
        said += " In this Space's Settings, larger hardware can be chosen, ZeroGPU among it."
    if name == settings.model != Settings.model:
        said += f" Without M3AGIQA_MODEL, {Settings.model} judges here."
    return said


class ModelLoader:
    """Loads one model at most once at a time; a failed load can be started again."""

    def __init__(
        self,
        name: str,
        load: Callable[[str, Progress], Assessor] = Assessor.from_pretrained,
        instead: str | None = None,
    ) -> None:
        """`instead`: the model to serve if this one, which was promoted, cannot be loaded."""
        self.name = name
        self.state = LoadState()
        self._load = load
        self._instead = instead
        self._thread: threading.Thread | None = None
        """Whose model is wanted."""
        self._lock = threading.Lock()
        self._switching = threading.Lock()

    def start(self) -> None:
        """Begin to load in a background thread, unless that has happened already."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="model-loader", daemon=True)
                self._thread.start()

    def switch(self, name: str, confirm: Callable[[], None] = lambda: None) -> None:
        """Load another model in the calling thread and serve it from then on.

        Whoever has the old one finishes with it. `confirm` is called when the new one is loaded and not yet
        served; if that or the loading fails, the error is raised and the old one stays in service.
        """
        with self._switching:
            assessor = self._loaded(name, lambda message, fraction: None)
            confirm()
            with self._lock:
                self._thread = threading.current_thread()  # what another one is still loading is not wanted
                self.name, self.state = name, LoadState("Ready", 1.0, assessor=assessor)

    def retry(self) -> None:
        """Begin anew if loading has failed, e.g. because the network was away."""
        with self._lock:
            if self.state.error is not None:
                self.state = LoadState()
                self._thread = None
        self.start()

    def wait(self, stop: Callable[[], bool], report: Callable[[LoadState], None]) -> Assessor:
        """The loaded model. Raises what loading raised, and Stopped once `stop` answers True."""
        self.retry()
        while not (state := self.state).over:
            if stop():
                raise Stopped("Stopped while the model was loading.")
            report(state)
            thread = self._thread
            if thread is not None:
                thread.join(POLL)
        if state.error is not None:
            raise state.error
        assert state.assessor is not None
        return state.assessor

    def _run(self) -> None:
        def progress(message: str, fraction: float) -> None:
            self._set(replace(self.state, message=message, fraction=fraction))

        notice = ""
        for name in dict.fromkeys((self.name, self._instead or self.name)):
            try:
                state = LoadState("Ready", 1.0, assessor=self._loaded(name, progress), notice=notice)
                break
            except M3AgiqaError as error:
                log.warning("The model %s cannot be loaded: %s", name, error)
                state = LoadState(error=error, notice=notice)
                notice = f"{Path(name).name} was promoted, but cannot be served. {error}"
        self._set(state, name if state.assessor else None)

    def _set(self, state: LoadState, name: str | None = None) -> None:
        with self._lock:
            if self._thread is threading.current_thread():
                self.name, self.state = name or self.name, state

    def _loaded(self, name: str, progress: Progress) -> Assessor:
        """Raises M3AgiqaError, whatever went wrong: a page that waits for ever would hide it."""
        try:
            return self._load(name, progress)
        except M3AgiqaError:
            raise
        except Exception as error:
            log.exception("Loading the model %s failed", name)
            raise WeightsError(f"The model {name} could not be loaded; the app's log says why.") from error
