"""The model's answers for queued items, made in the background before anybody waits for them."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from contextvars import copy_context

from sqlalchemy import Select, exists, func, select

from annotation.store.current_responses import current_corrections
from annotation.store.items import record_assessment, require_item
from annotation.store.log import promoted
from annotation.store.models import Assessment, Assignment, Correction, ModelVersion, QueueEntry
from annotation.store.queue import QueueOrder
from annotation.ui.context import Studio
from m3agiqa.checkpoint.card import Card
from m3agiqa.errors import InputError, M3AgiqaError, Stopped

log = logging.getLogger(__name__)

ITEMS_AHEAD = 3  # items of the queue that nobody holds yet, assessed after each request
AHEAD_OF_ORDER = dict.fromkeys((QueueOrder.UNCERTAIN, QueueOrder.INFORMATIVE), 200)
"""More of them for orders that choose among what has been assessed."""
RETRY_SECONDS = 30.0  # seconds before a model or a store that has failed is tried again


class Prefetch:
    """One worker for all annotators: what is on their screens first, then what they hold, then the queue, and
    after a change of the model what people have scored, which it is measured by.

    Who has left an item before the model was done with it is quicker than the model: it is given up, and
    goes on with the item that comes after the one on their screen, which it may have ready in time.
    Visitors of the Assess tab go first: the model is given back between items, and an item is put off in
    the middle when a visitor asks. Without annotators the queue waits.
    """

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._wanted: dict[str, list[int]] = {}
        """By person, the longest waiting first: the item on their screen, and those that come after it."""
        self._settled: set[int] = set()
        """Of these, the ones that need nothing more."""
        self._quick: set[str] = set()
        self._current: int | None = None
        self._is_ahead = False
        """Whether nobody holds the current item yet."""
        self._was_on_screen = False
        """Whether the model has begun with the current item when somebody had it on their screen."""
        self._ahead = 0
        self._is_behind = False
        """Whether the served model has perhaps not assessed all that people have scored."""
        self._failures: dict[int, str] = {}
        self._failure_of_all = ""
        self._failed_at = 0.0
        self._request_context = copy_context()
        """Of the last request: where GPUs are shared out, it is that annotator's share which is used."""
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def want(self, person: str, items: Sequence[int], ahead: int = ITEMS_AHEAD) -> None:
        """Ask for assessments of what a person holds, that on their screen first.

        It takes the place of what they held before; so many of the queue follow when nobody waits. Starts
        the worker if need be.
        """
        with self._changed:
            if self._ended.is_set():
                return
            if items[:1] != self._wanted.get(person, [])[:1]:
                self._wanted.pop(person, None)  # who has gone on waits anew
            self._wanted[person] = list(items)
            self._settled &= {item for of_person in self._wanted.values() for item in of_person} - set(items)
            self._is_ahead = self._is_ahead and self._current not in items
            self._ahead = max(self._ahead, ahead)
            self._go_on()

    def catch_up(self) -> None:
        """Have the served model assess all that people have scored, when nobody waits for anything else."""
        with self._changed:
            if not self._ended.is_set():
                self._is_behind = True
                self._go_on()

    def resume(self) -> None:
        """Catch up, once the model is loaded, if one was ever promoted: a restart may have interrupted it."""

        def wait() -> None:
            with suppress(M3AgiqaError):  # the page says why there is no model
                with self._studio.store.database.reading() as session:
                    is_promoted = promoted(session) is not None
                if is_promoted:
                    self._studio.loader.wait(self._ended.is_set, lambda load: None)
                    self.catch_up()

        threading.Thread(target=wait, name="catch-up", daemon=True).start()

    def behind(self) -> int:
        """How many items people have scored that the served model has not assessed; 0 before it is loaded."""
        assessor = self._studio.loader.state.assessor
        if assessor is None:
            return 0
        assessed = _assessed_by(assessor.card).where(Assessment.item_id == Correction.item_id)
        waiting = _scored.where(~assessed.exists()).order_by(None).distinct().subquery()
        with self._studio.store.database.reading() as session:
            return session.scalar(select(func.count()).select_from(waiting)) or 0

    def _go_on(self) -> None:
        self._request_context = copy_context()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
            self._thread.start()
            atexit.register(self.stop)
        self._changed.notify_all()

    def show(self, person: str, item: int) -> None:
        """A person has the item on their screen now."""
        with self._changed:
            others = [other for other in self._wanted.get(person, []) if other != item]
        self.want(person, [item, *others])

    def leave(self, person: str, item: int) -> None:
        """A person is through with an item; if nobody else waits for it, the model is, too."""
        with self._changed:
            items = self._wanted.get(person, [])
            if item in items:
                self._wanted[person] = [other for other in self._wanted.pop(person) if other != item]
                if item == self._current:
                    self._quick.add(person)

    def failure(self, item: int) -> str:
        """Why there is no answer for this item and none is under way; "" if there will be one."""
        return self._failures.get(item) or self._failure_of_all

    def stop(self) -> None:
        """End the worker, before the model's next token."""
        with self._changed:
            self._ended.set()
            self._changed.notify_all()
        self._studio.loader.wake()
        self._studio.line.wake()
        if self._thread is not None:
            self._thread.join(5)

    def _work(self) -> None:
        while (item := self._next()) is not None:
            try:
                is_new = self._request_context.copy().run(self._assess, item)
                self._failure_of_all = ""
                with self._changed:
                    in_time = {person for person, items in self._wanted.items() if item in items}
                    self._quick -= in_time if is_new else set()
            except Stopped:  # for a visitor, for somebody's screen, or because the app ends
                continue
            except InputError as error:
                self._failures[item] = str(error)
            except M3AgiqaError as error:  # the model's or the store's, not this item's
                self._failure_of_all, self._failed_at = str(error), time.monotonic()
                log.warning("The queue's items cannot be assessed: %s", error)
                with self._changed:
                    self._wanted.clear()  # whoever still wants them asks again
                    self._ahead, self._is_behind = 0, False
            except Exception:
                log.exception("Assessing item %s of the queue failed", item)
                self._failures[item] = "The model failed on this image; the app's log says more."
            with self._changed:
                self._settled.add(item)

    def _next(self) -> int | None:
        """The most urgent item, waiting until there is one; None at the end."""
        while not self._ended.is_set():
            with self._changed:
                self._current, self._is_ahead = None, False
                seconds_left = (
                    self._failed_at + RETRY_SECONDS - time.monotonic() if self._failure_of_all else 0.0
                )
                if seconds_left > 0:
                    self._changed.wait(seconds_left)
                    continue
                if ranks := self._ranks():
                    self._current = min(ranks, key=ranks.__getitem__)  # of equals the first
                    self._was_on_screen = self._current in self._on_screens()
                    return self._current
                if self._ahead == 0 and not self._is_behind:
                    self._changed.wait()
                    continue
                is_of_queue = self._ahead > 0
                if is_of_queue:
                    self._ahead -= 1
                else:
                    self._is_behind = False  # until an item is found
            item = self._first(_queued if is_of_queue else _scored)
            with self._changed:
                if item is not None:
                    self._is_behind = self._is_behind or not is_of_queue
                    self._current, self._is_ahead = item, True
                    return item
                if is_of_queue:
                    self._ahead = 0
        return None

    def _ranks(self) -> dict[int, int]:
        """How urgent the items are that people wait for: 0 for those that the model is to see first."""
        ranks: dict[int, int] = {}
        for person, items in self._wanted.items():
            ordered = [*items[1:], *items[:1]] if person in self._quick else items
            for rank, item in enumerate(ordered):
                if item not in self._settled and item not in self._failures:
                    ranks[item] = min(rank, ranks.get(item, rank))
        return ranks

    def _on_screens(self) -> set[int]:
        return {items[0] for items in self._wanted.values() if items}

    def _first(self, items: Select[tuple[int]]) -> int | None:
        """The first of some items that the served model has not assessed, nor failed on."""
        assessor = self._studio.loader.state.assessor
        if assessor is None:
            return None
        [column] = items.selected_columns
        assessed = _assessed_by(assessor.card).where(Assessment.item_id == column)
        query = items.where(~assessed.exists(), column.not_in(list(self._failures))).limit(1)
        try:
            with self._studio.store.database.reading() as session:
                return session.scalar(query)
        except M3AgiqaError as error:
            log.warning("What is to be assessed cannot be read: %s", error)
            return None

    def _assess(self, item: int) -> bool:
        """Whether there was anything to do."""
        store, line = self._studio.store, self._studio.line
        assessor = self._studio.loader.wait(self._ended.is_set, lambda load: None)
        with store.database.reading() as session:
            if session.scalar(select(_assessed_by(assessor.card).where(Assessment.item_id == item).exists())):
                return False
            queued = require_item(session, item)
            path, prompt = store.images.path(queued.image.file), queued.prompt.text
        with line.turn(self._ended.is_set, lambda place: None):
            *_, assessment = assessor.stream(path, prompt or None, stop=self._must_stop)
        store.database.transact(lambda session: record_assessment(session, item, assessment, assessor.card))
        return True

    def _must_stop(self) -> bool:
        return self._ended.is_set() or len(self._studio.line) > 1 or self._is_overtaken()

    def _is_overtaken(self) -> bool:
        """Whether somebody waits before their screen for another item, or nobody for this one any more."""
        with self._changed:
            ranks = self._ranks()
            if self._current in ranks:
                # What comes on the screen while the model is at it is finished, also for quick people.
                is_put_off = self._was_on_screen or self._current not in self._on_screens()
                return is_put_off and min(ranks.values()) < ranks[self._current]
            return bool(ranks) or not self._is_ahead


_queued = (
    select(QueueEntry.item_id)
    .where(~exists().where(Assignment.item_id == QueueEntry.item_id))
    .order_by(QueueEntry.order)
)
"""What nobody holds yet."""
_scored = current_corrections().with_only_columns(Correction.item_id).order_by(Correction.item_id)
"""What people have said anything of."""


def _assessed_by(card: Card) -> Select[tuple[int]]:
    """Items that a model has assessed; what an earlier one said is not what is to be corrected."""
    return (
        select(Assessment.item_id)
        .join(Assessment.model_version)
        .where(ModelVersion.title == card.title, ModelVersion.digest == card.digest)
    )
