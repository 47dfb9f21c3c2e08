"""Retraining from people's corrections: one at a time, in a process of its own, with its state in files.

Everything lies in the folder `retraining` of the data: who else looks at it, whichever process that is, sees
the same. The lock is the operating system's, so it ends with the process that holds it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Thread
from typing import IO

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotation.exchange.dataset import Filters, human_samples
from annotation.exchange.exporting import ExportReport, export
from annotation.exchange.pick_material import PickMaterial, pick_material
from annotation.settings import Settings
from annotation.store import Store
from annotation.store.current_responses import current_corrections
from annotation.store.log import promoted
from annotation.store.models import Assessment, Correction, ModelVersion, Preference
from m3agiqa.aspects import Aspect
from m3agiqa.checkpoint.card import Card, read_card
from m3agiqa.checkpoint.registry import candidates, find
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.files import is_disk_full, lock, write_atomically
from m3agiqa.plurals import counted

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]
STARTED_BY = "M3AGIQA_STARTED_BY"  # read by training.parallel.follow_starter
OUT_OF_SPACE = "The disk is full. Make room; retraining again goes on where this one was stopped."
TOO_FEW_PICKS = (
    "Nobody has scored an image yet, and the picks of the best image are too few to learn from alone "
    "({picks}). Pick the best image of more prompts on the Compare tab, or score images."
)
LEARNS_FROM = "A new model learns from scores of the Annotate tab and picks of the Compare tab."
PROMOTED_IS_GONE = (
    "The model {model} was promoted, but is gone, so there is nothing to start from. Put another model into "
    "service on the Models tab."
)
CONFIG = ROOT / "training" / "configs" / "corrections.yaml"
EXPORT_NAME = "corrections"
LOCK_SECONDS = 1.0  # for which a lock is tried: who only looks whether it is held has it for a moment
CANCEL_INTERVAL = 0.3  # seconds between two looks whether somebody has cancelled
SECONDS_TO_END = 10  # for training that is asked to end, before it is killed
THIS_SERVER = "this server"  # started it by itself
CANCELLED = 130  # exit code, as of Ctrl-C
WATCH_INTERVAL = 60.0  # seconds between two looks whether there are enough corrections
LOG_TAIL = 20_000  # bytes of the log that are shown
PASSES_OVER_IMAGES = 3  # to describe them, to learn from people's words, and to describe them again
TIMED_ASSESSMENTS = 50  # the latest ones of a model, whose time is that of the next
NANO_SECONDS = 2.5  # an image on two cores of an AMD EPYC, where this machine has not assessed any yet

PROGRESS_BAR = re.compile(
    r"(?P<stage>\w+): +\d+%\|.*\| (?P<done>\d+)/(?P<total>\d+) \[[\d:]+<(?P<left>[\d:]*)"
)
STAGE_BEGUN = re.compile(r"^\S+ \S+ (\w+): begun$", re.M)


@dataclass(frozen=True)
class RetrainingState:
    """What is known of the latest retraining; all moments are ISO 8601, in UTC."""

    started_by: str
    started_at: str
    pid: int
    host: str
    newest_correction: int = 0
    """Highest id of a correction that it has learned from."""
    tried_correction: int = 0
    """Highest id of a correction that there was, whatever became of it."""
    newest_pick: int = 0
    """Highest id of a pick of the best image that it has learned from."""
    tried_pick: int = 0
    """Highest id of a pick that there was, whatever became of it."""
    ended_at: str | None = None
    error: str = ""
    """Why it ended without a model; "" if it did not."""
    candidate: str | None = None
    """The new model's name in the registry."""

    @property
    def who(self) -> str:
        """Who started it, and when."""
        return f"started by {self.started_by} on {self.started_at[:16].replace('T', ' ')} UTC"


@dataclass(frozen=True)
class RetrainingProgress:
    """How far a retraining is."""

    stage: str
    """export, or a stage of a training run."""
    done: int = 0
    total: int = 0
    """Images; 0 where the stage does not count any."""
    left: str = ""
    """Time that the stage still takes, as M:SS or H:MM:SS."""


@dataclass(frozen=True)
class AspectMaterial:
    """What people have said of one aspect."""

    train: int
    """Images with a MOS to learn from."""
    test: int
    """Images with a MOS that are held out."""
    opinions: int


@dataclass(frozen=True)
class Material:
    """What a retraining would learn from now."""

    new: int
    """Corrections since the latest retraining."""
    images: int
    aspects: dict[Aspect, AspectMaterial]
    picks: PickMaterial
    described: int
    """Images to learn from that people have described."""
    described_test: int
    """Held-out images that people have described."""
    texts_left_out: int
    """Descriptions that tell nothing of their image (annotation.statistics.doubts)."""
    seconds: float | None
    """That it takes at most, by how long the model took for an image here; None if that is not known.

    Where it has taken none here, nano's is that of two cores of an AMD EPYC.
    """

    @property
    def duration(self) -> str:
        """A sentence."""
        if self.seconds is None:
            return "How long it takes is known once the model has assessed an image here."
        return f"It takes at most about {counted(math.ceil(self.seconds / 60), 'minute')}."

    @property
    def is_enough(self) -> bool:
        """Whether scores of any aspect, or picks alone, suffice to learn from and to compare models on."""
        return self.picks.is_enough or any(each.train and each.test for each in self.aspects.values())


class Busy(InputError):
    """Another retraining is running."""


class Retraining:
    """That of one server's data; any number of objects and processes may look at it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.folder = settings.data / "retraining"
        self.log = self.folder / "log.txt"
        self._state_file, self._cancel_file = self.folder / "state.json", self.folder / "cancel"

    # --- looking

    def state(self) -> RetrainingState | None:
        """Of the latest one; None before there was any."""
        try:
            return RetrainingState(**json.loads(self._state_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def is_running(self) -> bool:
        """Whether a process holds the lock."""
        if not self._lock_file.exists():
            return False
        with self._lock_file.open("ab") as file:
            return not lock(file)

    def progress(self) -> RetrainingProgress:
        """How far the running one is."""
        bar = PROGRESS_BAR.search(self.log_tail().rpartition("\n")[2])
        if bar is not None:
            return RetrainingProgress(bar["stage"], int(bar["done"]), int(bar["total"]), bar["left"])
        path, state = self._run_folder / "log.txt", self.state()
        with suppress(OSError):
            began = datetime.fromisoformat(state.started_at).timestamp() if state else math.inf
            stages = STAGE_BEGUN.findall(path.read_text(encoding="utf-8"))
            if stages and path.stat().st_mtime > began:  # else they are those of an earlier one
                return RetrainingProgress(stages[-1])
        return RetrainingProgress("export")

    def log_tail(self) -> str:
        """The end of what it has printed; of a progress bar the latest."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - LOG_TAIL))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))

    def material(self, store: Store) -> Material:
        """What there is to learn from. Raises InputError if that is nothing, or `_start` fails."""
        state = self.state()
        with store.database.reading() as session:
            picks = pick_material(session, state.newest_pick if state else 0)
        try:
            human = human_samples(store, Filters(), may_be_unscored=bool(picks.items))
        except InputError as error:
            raise InputError(f"{error} {LEARNS_FROM}") from error
        aspects = {}
        for aspect in Aspect:
            parts = [sample.split for sample in human.samples if aspect in sample.mos]
            opinions = int((human.opinions["aspect"] == aspect).sum())
            if parts:
                aspects[aspect] = AspectMaterial(parts.count("train"), parts.count("test"), opinions)
        with store.database.reading() as session:
            new = _later(session, state.newest_correction if state else 0)
            card = read_card(self._start(session), verify=False)
            seconds = _seconds_an_image(session, card) or (NANO_SECONDS if card.backbone == "nano" else None)
        images = len(human.samples) + len(picks.items - set(human.opinions["item_id"]))
        total = None if seconds is None else seconds * images * PASSES_OVER_IMAGES
        described = [sample.split for sample in human.samples if sample.descriptions]
        learned, held_out = described.count("train"), described.count("test")
        return Material(new, images, aspects, picks, learned, held_out, human.texts_left_out, total)

    # --- doing

    def start(self, person: str) -> None:
        """Retrain in a process of its own, which outlives this one. Raises Busy, or what stops it at once."""
        if self.is_running():
            raise Busy(self._busy_text())
        environment = {
            **os.environ,
            "M3AGIQA_DATA": str(self._settings.data),
            "M3AGIQA_MODEL": self._settings.model,
            "M3AGIQA_RUNS": str(self._settings.runs),
            "DATABASE_URL": self._settings.database_url,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        before = self.state()
        with self._writable(self.log) as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "annotation", "retrain", "--by", person],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        while process.poll() is None and self.state() == before:
            time.sleep(0.05)
        if process.poll() and self.state() == before:
            raise InputError(self._last_words(process.returncode))
        Thread(target=process.wait, daemon=True).start()  # so that no dead process is left

    def watch(self, store: Store, interval: float = WATCH_INTERVAL) -> None:
        """Start one from a thread of this process whenever there are enough corrections, if that is set."""

        def watch() -> None:
            while True:
                try:
                    self.start_if_due(store)
                except (M3AgiqaError, OSError) as error:
                    log.warning("Retraining cannot start by itself: %s", error)
                time.sleep(interval)

        if self._settings.retrain_after:
            Thread(target=watch, name="retrain-after", daemon=True).start()

    def start_if_due(self, store: Store) -> bool:
        """Start one if there are enough corrections that none was tried with; whether it was."""
        if self.is_running() or self.corrections_until_due(store) != 0:
            return False
        log.warning(
            "Retraining starts by itself. If it fails, the same corrections do not start it again by "
            "themselves; %d newer ones do.",
            self._settings.retrain_after,
        )
        with self._locked():  # known even if the new process is killed before it can say anything
            self._write(self._begun(store, THIS_SERVER))
        self.start(THIS_SERVER)
        return True

    def corrections_until_due(self, store: Store) -> int | None:
        """How many more corrections start one by itself, 0 if it is due; None if that is not set.

        Those that one was tried with do not count, whatever became of it.
        """
        state, wanted = self.state(), self._settings.retrain_after
        if not wanted:
            return None
        with store.database.reading() as session:
            tried = max(state.newest_correction, state.tried_correction) if state else 0
            return max(0, wanted - _later(session, tried))

    def cancel(self) -> None:
        """Ask the running one, if there is any, to end; what it has described is kept."""
        if self.is_running():
            self._cancel_file.touch()

    def plan(self, store: Store) -> int:
        """Print what would be done; the exit code of training. Raises M3AgiqaError."""
        self._settings.data.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._settings.data, prefix=".plan-") as scratch:
            report = _exported(store, Path(scratch) / "export")
            sys.stdout.write(f"{report.text}\n{self.material(store).duration}\n")
            sys.stdout.flush()
            return subprocess.run([*self._command(store, report), "--plan"]).returncode

    def run(self, store: Store, person: str) -> int:
        """Export, train and register, and print the log meanwhile; the exit code of training.

        Raises Busy if another one is running, and M3AgiqaError where there is nothing to learn from or the
        disk is full. The same again goes on where this one was stopped.
        """
        with self._locked() as held:
            state = self._begun(store, person)
            try:
                self._write(state)  # with what it is tried with: a process that is killed says nothing more
                self._cancel_file.unlink(missing_ok=True)
                self.log.write_bytes(b"")
                report = _exported(store, self.folder / "export")
                with self._writable(self.log) as log:
                    log.write(f"{report.text}\n".encode())
                code = self._train(self._command(store, report), held)
                if self._cancel_file.exists():
                    state, code = replace(state, error="It was cancelled."), CANCELLED
                elif code:
                    state = replace(state, error=self._last_words(code))
                else:
                    candidate = self._registered()
                    state = replace(state, newest_correction=state.tried_correction, candidate=candidate)
                    state = replace(state, newest_pick=state.tried_pick)
                return code
            except BaseException as error:
                full = is_disk_full(error)
                state = replace(state, error=OUT_OF_SPACE if full else str(error) or type(error).__name__)
                if full:
                    raise InputError(OUT_OF_SPACE) from error
                raise
            finally:
                with suppress(OSError):  # a full disk: whoever looks finds that it was interrupted
                    self._write(replace(state, ended_at=_now()))

    # --- what they share

    @property
    def _lock_file(self) -> Path:
        return self.folder / "lock"

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        with self._writable(self._lock_file) as file:
            until = time.monotonic() + LOCK_SECONDS
            while not lock(file):
                if time.monotonic() > until:
                    raise Busy(self._busy_text())
                time.sleep(0.05)
            yield file

    def _busy_text(self) -> str:
        state = self.state()
        who = f", {state.who} (process {state.pid} on {state.host})" if state else ""
        return (
            f"A retraining is running already{who}. Wait until it has ended, or cancel it on the Models tab."
        )

    def _begun(self, store: Store, person: str) -> RetrainingState:
        """The state of one that begins now."""
        last = self.state()
        with store.database.reading() as session:
            newest = [session.scalar(select(func.max(each))) or 0 for each in (Correction.id, Preference.id)]
        learned = (last.newest_correction, last.newest_pick) if last else (0, 0)
        numbers = learned[0], newest[0], learned[1], newest[1]
        return RetrainingState(person, _now(), os.getpid(), platform.node(), *numbers)

    def _write(self, state: RetrainingState) -> None:
        write_atomically(self._state_file, json.dumps(asdict(state), indent=2) + "\n")

    @contextmanager
    def _writable(self, path: Path) -> Iterator[IO[bytes]]:
        """A file of the folder to append to. Raises InputError where that cannot be."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}.") from error
        with file:
            yield file

    def _train(self, command: list[str], held: IO[bytes]) -> int:
        """The exit code; training ends with this process, and holds the lock as long as it lives."""
        environment = {**os.environ, STARTED_BY: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        inherited = () if os.name == "nt" else (held.fileno(),)
        with self._writable(self.log) as log:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=inherited,
            )
        with process, self.log.open("rb") as log:
            try:
                while process.poll() is None and not self._cancel_file.exists():
                    time.sleep(CANCEL_INTERVAL)
                    _show(log)
            finally:
                if process.poll() is None:
                    process.terminate()
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(SECONDS_TO_END)
                    process.kill()
            _show(log)
            return process.wait()

    def _command(self, store: Store, report: ExportReport) -> list[str]:
        with store.database.reading() as session:
            start = self._start(session)
        command = [sys.executable, "-m", "training", "run", str(CONFIG), "--run", str(self._run_folder)]
        command += ["--add-annotations", str(report.folder), "--register", str(self._settings.models)]
        return [*command, "--set", f"start={start}", "--set", f"backbone={read_card(start).backbone}"]

    @property
    def _run_folder(self) -> Path:
        return self._settings.runs / EXPORT_NAME

    def _start(self, session: Session) -> Path:
        """The checkpoint in service. Raises InputError if it is gone, WeightsError if it cannot be had."""
        chosen = promoted(session)
        name = chosen or self._settings.model
        try:
            return find(name, self._settings.models, self._settings.revision_of(name))
        except InputError as error:
            if chosen is None:
                raise
            raise InputError(PROMOTED_IS_GONE.format(model=Path(chosen).name)) from error

    def _registered(self) -> str | None:
        """The name of the model that the run has made."""
        digest = read_card(self._run_folder / "checkpoint", verify=False).digest
        known = candidates(self._settings.models)
        return next((each.name for each in known if each.card.digest == digest), None)

    def _last_words(self, code: int) -> str:
        """Of a process that has failed: the end of the log, if there is anything but the export's report."""
        lines = [each for each in self.log_tail().splitlines() if each and not each.startswith(EXPORT_NAME)]
        return lines[-1] if lines else f"It ended without a word (exit code {code})."


def _exported(store: Store, out: Path) -> ExportReport:
    report = export(store, out, name=EXPORT_NAME)
    if not report.counts["samples"]:
        with store.database.reading() as session:
            picks = pick_material(session)
        if not picks.is_enough:
            raise InputError(TOO_FEW_PICKS.format(picks=picks))
    return report


def _later(session: Session, correction: int) -> int:
    """How many current corrections are newer."""
    current = current_corrections().where(Correction.id > correction)
    return session.scalar(select(func.count()).select_from(current.subquery())) or 0


def _show(log: IO[bytes]) -> None:
    """Print what has come since the last time."""
    sys.stdout.write(log.read().decode(errors="replace"))
    sys.stdout.flush()


def _seconds_an_image(session: Session, card: Card) -> float | None:
    """That a model has taken here lately; None if it has assessed nothing yet."""
    latest = (
        select(Assessment.seconds)
        .join(Assessment.model_version)
        .where(ModelVersion.title == card.title, ModelVersion.digest == card.digest)
        .order_by(Assessment.id.desc())
        .limit(TIMED_ASSESSMENTS)
    )
    seconds = session.scalars(latest).all()
    return median(seconds) if seconds else None


def _now() -> str:
    return datetime.now(UTC).isoformat()
