"""The model, loaded in the background while the page is already there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from m3agiqa.assessor import Assessor
from m3agiqa.errors import M3AgiqaError, Stopped, WeightsError
from m3agiqa.weights import Progress

log = logging.getLogger(__name__)

POLL = 0.1  # seconds


@dataclass(frozen=True)
class LoadState:
    """How far loading is; exactly one of `assessor` and `error` is set once it has ended."""

    message: str = "Starting"
    fraction: float = 0.0
    assessor: Assessor | None = None
    error: M3AgiqaError | None = None

    @property
    def over(self) -> bool:
        return self.assessor is not None or self.error is not None


class ModelLoader:
    """Loads one model at most once at a time; a failed load can be started again."""

    def __init__(
        self, name: str, load: Callable[[str, Progress], Assessor] = Assessor.from_pretrained
    ) -> None:
        self.name = name
        self.state = LoadState()
        self._load = load
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to load in a background thread, unless that has happened already."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="model-loader", daemon=True)
                self._thread.start()

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
            self.state = replace(self.state, message=message, fraction=fraction)

        try:
            self.state = LoadState("Ready", 1.0, assessor=self._load(self.name, progress))
        except M3AgiqaError as error:
            self.state = LoadState(error=error)
        except Exception as error:  # a page that waits for ever would hide it
            log.exception("Loading the model %s failed", self.name)
            failure = WeightsError(f"The model {self.name} could not be loaded; the app's log says why.")
            failure.__cause__ = error
            self.state = LoadState(error=failure)
