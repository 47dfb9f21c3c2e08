"""Images from people's files into the store and the queue, with gold answers and scores given elsewhere."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath

from sqlalchemy.orm import Session

from annotation.exchange.import_csv import Row
from annotation.exchange.import_sources import Offer, offers
from annotation.settings import MOST_ANNOTATORS
from annotation.store import Store, items, queue
from annotation.store.corrections import AspectResponse, NewSubmission, WithdrawnError, latest_revision, save
from annotation.store.database import storable, storable_within
from annotation.store.image_files import StoredImage
from annotation.store.log import log_action
from annotation.store.models import GoldAnswer, Image
from m3agiqa.aspects import COMMON_SCALE, Aspect
from m3agiqa.conversation import clean_prompt
from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.image_metadata import find_prompt
from m3agiqa.plurals import counted
from m3agiqa.tables import some_names

BATCH_SIZE = 50  # images a transaction; other writers wait no longer than for these
READER_THREADS = min(4, os.cpu_count() or 1)
SHOWN_ERRORS = 10
SHOWN_NAMES = 5

Progress = Callable[[int, int], None]
"""Told how many images of how many are in."""


@dataclass
class ImportReport:
    """What an import did."""

    added: int = 0
    """Images (with their prompts) that are new."""
    known: int = 0
    """Images that were there already, or came twice."""
    queued: int = 0
    """Images that are new in the annotation queue."""
    gold: int = 0
    """Calibration images: those with known answers."""
    scores: int = 0
    """Scores of people that are new."""
    left_out: list[str] = field(default_factory=list)
    """Files that are no images, or that the CSV does not list."""
    read: set[PurePath] = field(default_factory=set)
    """Where the images lay, within a ZIP or on this machine."""
    errors: list[tuple[str, str]] = field(default_factory=list)
    """Places (row, file) and sentences, of what could not be imported."""
    notes: tuple[str, ...] = ()
    """Sentences about how a table was read."""

    @property
    def summary(self) -> str:
        """The counts in a sentence."""
        counts = [f"{counted(self.added, 'image')} added", f"{self.known:,} known already"]
        counts.append(f"{self.queued:,} put into the annotation queue")
        if self.gold:
            counts.append(f"{counted(self.gold, 'calibration image')} with known answers")
        if self.scores:
            counts.append(f"{counted(self.scores, 'score')} of people taken over")
        if self.left_out:
            names = some_names(self.left_out, SHOWN_NAMES)
            counts.append(f"{counted(len(self.left_out), 'other file')} left out ({names})")
        if self.errors:
            counts.append(f"{counted(len(self.errors), 'entry', 'entries')} could not be imported")
        return ", ".join(counts) + "."

    @property
    def text(self) -> str:
        """The summary and the first errors."""
        lines = [f"{place}: {sentence}" for place, sentence in self.errors[:SHOWN_ERRORS]]
        if len(self.errors) > SHOWN_ERRORS:
            lines.append(f"… and {len(self.errors) - SHOWN_ERRORS:,} more.")
        return "\n".join([self.summary, *self.notes, *lines])


def import_into(
    store: Store,
    source: Path,
    *,
    overlap: int,
    name: str | None = None,
    images: Path | None = None,
    annotator: str | None = None,
    trusted: bool = False,
    with_scores: bool = True,
    progress: Progress = lambda done, total: None,
) -> ImportReport:
    """Import a folder, a ZIP, a CSV or a single image; the same again adds nothing twice.

    `overlap`: annotators per image (0: nothing is queued); `name` of the import (default: the source's);
    `images`: folder that the paths of a CSV start from; `annotator` who imports; `trusted`: the CSV may name
    any file of this machine (command line), not only those in its folder; `with_scores`: its rows may bring
    known answers, and scores in anybody's name; else such rows are refused. What is wrong with single images
    is in the report. Raises InputError if nothing can be imported, and any M3AgiqaError, which says what is
    in already, if the store fails on the way.
    """
    name = storable_within(name or "", items.MAX_SOURCE, "name of the import") or _title(source)
    if name == items.DEMO_SOURCE:
        raise InputError(f"An import cannot be called {name}, as images of the Assess tab are; give a name.")
    if not 0 <= overlap <= MOST_ANNOTATORS:
        raise InputError(
            f"There cannot be {overlap} annotators per image; give 1 to {MOST_ANNOTATORS}, or 0 for no queue."
        )
    report = ImportReport()
    with offers(source, images, trusted) as offered, ThreadPoolExecutor(READER_THREADS) as readers:
        report.errors, report.left_out, report.notes = offered.errors, offered.left_out, offered.notes
        report.read = {offer.path for offer in offered.images}
        total, done = len(offered.images), 0
        progress(0, total)
        try:
            for start in range(0, total, BATCH_SIZE):
                batch = offered.images[start : start + BATCH_SIZE]
                read = list(readers.map(partial(_read, store, with_scores), batch))
                ready = [each for each in read if isinstance(each, Ready)]
                added = store.database.transact(partial(_add, batch=ready, source=name, overlap=overlap))
                _count_in(report, added, [each for each in read if not isinstance(each, Ready)])
                done += len(batch)
                progress(done, total)
            store.database.transact(partial(_record, annotator=annotator, name=name, report=report))
        except M3AgiqaError as error:
            raise type(error)(
                f"{error} {done:,} of {total:,} images are in; import the same again to go on."
            ) from error
    return report


# --- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """An image whose file is in the store, and what its item needs beside."""

    row: Row
    image: StoredImage
    prompt: str | None


def _title(source: Path) -> str:
    whole = source.resolve()
    return storable(whole.name if source.is_dir() else whole.stem)[: items.MAX_SOURCE] or "import"


def _read(store: Store, with_scores: bool, offer: Offer) -> Ready | tuple[str, str]:
    """The image, kept in the folder of image files, or its place and what is wrong with it."""
    row = offer.row
    try:
        if (row.scores or row.gold) and not with_scores:
            raise InputError("It has scores or known answers, which only an admin may bring in.")
        content = offer.read()
        prompt = clean_prompt(row.prompt)
        if prompt is None and (embedded := find_prompt(content)):
            prompt = clean_prompt(embedded.text)
        for aspect in (*row.scores, *(answer.aspect for answer in row.gold)):
            if aspect.needs_prompt and prompt is None:
                raise InputError(f"It has a score for {aspect} but no prompt, which that is about.")
        return Ready(row, _stored(store, content, offer.path.name), prompt)
    except InputError as error:
        return row.place, str(error)


def _stored(store: Store, content: bytes, name: str) -> StoredImage:
    """The image as it is known from earlier, which spares decoding it, or newly added."""
    with store.database.reading() as session:
        known = session.get(Image, hashlib.sha256(content).hexdigest())
    if known is not None and store.images.path(known.file).is_file():
        return StoredImage(known.sha256, known.file, known.name, known.width, known.height, known.size)
    return store.images.add(content, name)


# --- writing -----------------------------------------------------------------------------------


def _add(session: Session, batch: list[Ready], source: str, overlap: int) -> ImportReport:
    """Add a batch to the database; its part of the report."""
    report = ImportReport()
    ordinary, ids = [], []
    for ready in batch:
        item, new = items.add_item(session, ready.image, ready.prompt, source, ready.row.generator)
        for answer in ready.row.gold:
            session.merge(GoldAnswer(item_id=item.id, **vars(answer)))
        ids.append(item.id)
        if ready.row.gold:
            report.gold += 1
        else:
            ordinary.append(item.id)
        report.added += new
        report.known += not new
    if overlap:
        report.queued = queue.enqueue(session, ordinary, overlap)
    for ready, item_id in zip(batch, ids, strict=True):
        if ready.row.scores:
            report.scores += _save_scores(session, ready, item_id)
    return report


def _save_scores(session: Session, ready: Ready, item_id: int) -> int:
    """Save what a person has scored elsewhere; how many scores are new."""
    scores, annotator = ready.row.scores, ready.row.annotator or ""
    facts = [ready.image.sha256, ready.prompt, annotator, sorted(scores.items())]
    responses = tuple(
        AspectResponse(
            aspect,
            score,
            COMMON_SCALE,
            revision=1 + latest_revision(session, item_id, aspect, annotator),
        )
        for aspect, score in scores.items()
    )
    token = hashlib.sha256(repr(facts).encode()).hexdigest()  # the same row again is the same submission
    try:
        saved = save(session, NewSubmission(token, item_id, annotator, responses, place="import"))
    except WithdrawnError:  # and so it stays
        return 0
    if saved.again:
        return 0
    if scores.keys() >= {aspect for aspect in Aspect if ready.prompt or not aspect.needs_prompt}:
        queue.finish(session, item_id, annotator)
    return len(responses)


def _record(session: Session, annotator: str | None, name: str, report: ImportReport) -> None:
    counts = {key: value for key, value in vars(report).items() if isinstance(value, int)}
    counts |= {"ignored": len(report.left_out), "errors": len(report.errors)}
    log_action(session, annotator, "import", name=name, **counts)


def _count_in(report: ImportReport, part: ImportReport, unread: list[tuple[str, str]]) -> None:
    for key, value in vars(part).items():
        if isinstance(value, int):
            setattr(report, key, getattr(report, key) + value)
    report.errors += unread
