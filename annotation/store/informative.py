"""The queue's items that teach a model most: those that stand for the most others that wait.

Items are compared by what the predictors' regression heads have read of them (m3agiqa.predictor.model). How
much more such items teach than others is measured in docs/experiments.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sqlalchemy import Select, func, select, union
from sqlalchemy.orm import Session

from annotation.store.database import query_chunks
from annotation.store.models import Assessment, Assignment, PooledStates, QueueEntry, Submission, WorkState
from m3agiqa.aspects import Aspect

MAX_COMPARED = 500
"""Items that wait, and as many that are annotated: of more, some are drawn at random, to bound the time."""
RANKED_ITEMS = 10
"""Items that are put in order at once: as many may be taken at the same moment."""
STORED_TYPE = "<f2"  # 128 bytes for nano's 64 numbers
States = NDArray[np.float32]
"""Of one item [width], or of several [N, width]."""


def most_informative(session: Session, free: Select[int]) -> list[int]:
    """Up to RANKED_ITEMS of the queue's free items, in the order in which they shall be annotated.

    Of one model, the one that has assessed most of them: states of two models cannot be compared. What it has
    not assessed is left out.
    """
    pooled = select(Assessment.item_id).join(PooledStates)
    assessed = free.where(QueueEntry.item_id.in_(pooled)).order_by(QueueEntry.order).limit(MAX_COMPARED)
    waiting = list(session.scalars(assessed))
    if not waiting:
        return []
    version = session.scalar(
        select(Assessment.model_version_id)
        .join(PooledStates)
        .where(Assessment.item_id.in_(waiting))
        .group_by(Assessment.model_version_id)
        .order_by(func.count().desc(), Assessment.model_version_id.desc())
        .limit(1)
    )
    in_hand = Assignment.state.in_((WorkState.HELD, WorkState.DONE))
    known = union(select(Submission.item_id), select(Assignment.item_id).where(in_hand)).subquery()
    drawn = select(known.c.item_id).order_by(func.random()).limit(MAX_COMPARED)
    annotated = list(session.scalars(drawn))  # of these, some wait for more people
    states = _states(session, version, [*waiting, *annotated])
    waiting = [item for item in waiting if item in states]
    of_waiting = np.stack([states[item] for item in waiting])
    of_annotated = [states[item] for item in annotated if item in states]
    order = most_representative(
        of_waiting, np.array(of_annotated).reshape(-1, of_waiting.shape[1]), RANKED_ITEMS
    )
    return [waiting[number] for number in order]


def states_as_bytes(states: Sequence[float]) -> bytes:
    """As PooledStates holds them."""
    return np.array(states, STORED_TYPE).tobytes()


def most_representative(waiting: States, known: States, count: int) -> list[int]:
    """Numbers of `count` waiting rows, each of which brings all of them nearest to a known or chosen one.

    Nearness is the mean squared distance; columns are standardized, and what is not known (NaN) is taken for
    the mean. Greedy, so that each beginning of the list is good, too.
    """
    together = np.concatenate([waiting, known])
    scaled = np.nan_to_num((together - np.nanmean(together, 0)) / (np.nanstd(together, 0) + 1e-6))
    distances = cdist(scaled[: len(waiting)], scaled, "sqeuclidean")
    nearest = distances[:, len(waiting) :].min(1, initial=distances.max())
    chosen: list[int] = []
    while len(chosen) < min(count, len(waiting)):
        gains = (nearest[:, None] - distances[:, : len(waiting)]).clip(0).sum(0)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        nearest = np.minimum(nearest, distances[:, chosen[-1]])
    return chosen


def _states(session: Session, version: int | None, items: Sequence[int]) -> dict[int, States]:
    """Of those items that a model version has assessed: all aspects' states, NaN where there are none."""
    by_aspect: dict[Aspect, dict[int, States]] = {aspect: {} for aspect in Aspect}
    for some in query_chunks(items):
        rows = session.execute(
            select(Assessment.item_id, PooledStates.aspect, PooledStates.states)
            .join(PooledStates)
            .where(Assessment.model_version_id == version, Assessment.item_id.in_(some))
            .order_by(Assessment.id)  # so that the latest stays
        )
        for item, aspect, states in rows:
            by_aspect[aspect][item] = np.frombuffer(states, STORED_TYPE).astype(np.float32)
    known = {aspect: of_items for aspect, of_items in by_aspect.items() if of_items}
    unknown = {aspect: np.full_like(next(iter(each.values())), np.nan) for aspect, each in known.items()}
    return {
        item: np.concatenate([each.get(item, unknown[aspect]) for aspect, each in known.items()])
        for item in set().union(*known.values())
    }
