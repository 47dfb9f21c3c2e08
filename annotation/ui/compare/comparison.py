"""Images that a visitor compares: the run that judges them, their order, and the picks of the best."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from annotation.store.image_files import StoredImage
from annotation.store.items import DEMO_SOURCE, add_item, model_version, record_assessment
from annotation.store.preferences import save_preference, withdraw_preference
from annotation.ui.access import Person
from annotation.ui.assess.runs import ModelRun, RunStage
from annotation.ui.context import Studio
from annotation.ui.images import Upload
from m3agiqa.aspects import Aspect
from m3agiqa.conversation import normalized_prompt
from m3agiqa.errors import InputError
from m3agiqa.ranking import OVERALL, RankedImage, Ranking, Standing, check_count, ranked_as_assessed

if TYPE_CHECKING:
    from m3agiqa.assessor import Assessor


class ComparisonRun(ModelRun):
    """The images of one prompt, judged in batches."""

    def __init__(self, uploads: Sequence[Upload], prompt: str, studio: Studio) -> None:
        super().__init__(prompt, studio.loader, studio.line)
        self.uploads = tuple(uploads)

    @property
    def subject(self) -> str:
        return f"{len(self.uploads)} images"

    @property
    def shown(self) -> Iterator[tuple[Path, str, Iterable[Aspect]]]:
        for image in self.state.ranking.images if self.state.ranking else ():
            yield self.uploads[image.index].path, self.prompt, image.assessment.aspects

    def _check(self) -> None:
        check_count(len(self.uploads))

    def _judge(self, assessor: Assessor) -> None:
        paths, names = [each.path for each in self.uploads], [each.name for each in self.uploads]
        prompt = normalized_prompt(self.prompt)
        for ranking in ranked_as_assessed(assessor, paths, prompt, names=names, stop=self._stop.is_set):
            self._update(ranking=ranking)
        self._update(stage=RunStage.FINISHED)


@dataclass(frozen=True)
class SavedPick:
    """What was saved: the preference's id, and which of the images it is."""

    preference_id: int
    index: int


class ImageComparison:
    """What the page shows of a run, for one person, and their pick. Events may come at the same moment."""

    def __init__(self, studio: Studio, person: Person, run: ComparisonRun) -> None:
        self.person = person
        self.run = run
        self.order = OVERALL
        self.weights: Mapping[Aspect, float] = dict.fromkeys(Aspect, 1.0)
        self._store = studio.store
        self._picks: list[SavedPick] = []
        self._items: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def ranking(self) -> Ranking | None:
        """As far as the images are judged, with the weights of the page."""
        ranking = self.run.state.ranking
        return ranking and replace(ranking, weights=self.weights)

    @property
    def pick(self) -> SavedPick | None:
        """The latest that is not undone."""
        return self._picks[-1] if self._picks else None

    @property
    def order_note(self) -> str:
        """Why the page has another order than the one that was asked for; "" if it has that."""
        ranking = self.ranking
        if ranking is None or not ranking.images or self.order in ranking.orders:
            return ""
        why = "by this model" if ranking.prompt else "without a prompt"
        return f"{self.order.capitalize()} is not judged {why}; this is the overall order."

    def places(self) -> list[Standing]:
        """In the order of the page; overall where its aspect is not judged. Raises InputError."""
        ranking = self.ranking
        if ranking is None:
            return []
        return ranking.places(self.order if self.order in ranking.orders else OVERALL)

    @property
    def may_be_picked_from(self) -> bool:
        """Not while images are being judged, nor after Stop: a pick is the best of all of them."""
        return self.run.state.stage is RunStage.FINISHED

    def save_pick(self, person: Person, index: int, token: str) -> None:
        """Keep the images and that this one is the best for this person. Raises M3AgiqaError."""
        state, ranking = self.run.state, self.run.state.ranking
        if not self.may_be_picked_from or ranking is None or state.card is None:
            raise InputError("Not all images are judged yet; pick the best when that is done.")
        if person.name != self.person.name:
            raise InputError("You have signed in as somebody else meanwhile; compare the images again.")
        if index not in {image.index for image in ranking.images}:
            raise InputError("This image is not among those that were judged; compare them again.")
        card = state.card
        with self._lock:
            stored = {} if self._items else {image.index: self._stored(image) for image in ranking.images}

            def keep_and_save(session: Session) -> tuple[dict[int, int], int]:
                items = self._items or {
                    image.index: self._kept(session, image, stored[image.index]) for image in ranking.images
                }
                equal = replace(ranking, weights=dict.fromkeys(Aspect, 1.0))
                overall = {items[each.image.index]: each.figure.mos for each in equal.places()}
                model = model_version(session, card)
                return items, save_preference(session, token, person.name, items[index], overall, model)

            self._items, preference_id = self._store.database.transact(keep_and_save)
            if all(pick.preference_id != preference_id for pick in self._picks):  # else it was sent twice
                self._picks.append(SavedPick(preference_id, index))

    def undo_pick(self, person: Person, preference_id: int) -> None:
        """Withdraw the pick that the page shows; the one before is back. Raises M3AgiqaError."""
        with self._lock:
            if self.pick is None or self.pick.preference_id != preference_id:
                return  # pressed twice
            self._store.database.transact(
                lambda session: withdraw_preference(session, preference_id, person.name)
            )
            self._picks.pop()

    def _stored(self, image: RankedImage) -> StoredImage:
        upload = self.run.uploads[image.index]
        return self._store.images.add(upload.path, upload.name)

    def _kept(self, session: Session, image: RankedImage, stored: StoredImage) -> int:
        item, _ = add_item(session, stored, image.assessment.prompt, DEMO_SOURCE)
        assert self.run.state.card is not None
        record_assessment(session, item.id, image.assessment, self.run.state.card, self.person.name or None)
        return item.id
