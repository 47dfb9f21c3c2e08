"""How many prompts people's picks of the best image are about: what a model can learn from them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from annotation.exchange.dataset import split_of_items
from annotation.store.preferences import current_preferences
from m3agiqa.grouping import MIN_CROSS_VALIDATED_GROUPS, connected_groups, fold_prompt
from m3agiqa.plurals import counted


@dataclass(frozen=True)
class PickMaterial:
    """The current picks; prompts that share an image count as one."""

    items: frozenset[int]
    """Images with their prompts that were compared."""
    train: int
    """Prompts to learn from."""
    test: int
    """Prompts that are held out."""
    new: int
    """Picks since an earlier one."""

    @property
    def are_followed(self) -> bool:
        """Whether they are enough to move a model beside scores."""
        return self.train >= MIN_CROSS_VALIDATED_GROUPS

    @property
    def is_enough(self) -> bool:
        """Whether they are enough without any score: others must tell whether the new model is better."""
        return self.are_followed and self.test > 0

    def __str__(self) -> str:
        prompts = f"{counted(self.train, 'prompt')} to learn from, {self.test:,} held out"
        if self.is_enough:
            return prompts
        beside = "" if self.are_followed else f"; {MIN_CROSS_VALIDATED_GROUPS} are needed to learn from"
        return f"{prompts}{beside}" + ("" if self.test else "; without scores, one must be held out")


def pick_material(session: Session, after: int = 0) -> PickMaterial:
    """Of all current picks; those with a higher id than `after` are new."""
    picks, part_of = current_preferences(session), split_of_items(session)
    parts, marks = [], []
    for pick in picks:
        [best] = [each for each in pick.compared if each.preferred]
        parts.append(part_of[best.item_id])
        prompt = fold_prompt(best.item.prompt.text)
        images = [("image", each.item.image_sha256) for each in pick.compared]
        marks.append([*images, ("prompt", prompt)] if prompt else images)
    groups = connected_groups(marks)
    train, test = (
        len({group for group, of in zip(groups, parts, strict=True) if of == part})
        for part in ("train", "test")
    )
    items = frozenset(each.item_id for pick in picks for each in pick.compared)
    return PickMaterial(items, train, test, sum(pick.id > after for pick in picks))
