"""Groups of images that share something, such as their prompt, and batches of limited size."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Item = TypeVar("Item")

MIN_CROSS_VALIDATED_GROUPS = 10
"""With fewer groups of images (prompts), cross-validation decides nothing, so that nothing is learned."""


def fold_prompt(prompt: str | None) -> str:
    """A prompt without white space and capitals that make no difference; "" for none."""
    return " ".join((prompt or "").split()).casefold()


def connected_groups(marks: Iterable[Iterable[Hashable]]) -> list[int]:
    """The group of each item by its marks, named by the index of the group's first item.

    Items that share a mark are in one group, and so are those joined by a chain of such items.
    """
    first_with: dict[Hashable, int] = {}
    links: list[tuple[int, int]] = []
    count = 0
    for count, of_item in enumerate(marks, 1):
        links += [(first_with.setdefault(mark, count - 1), count - 1) for mark in of_item]
    if not links:
        return list(range(count))
    rows, columns = np.array(links).T
    graph = coo_array((np.ones(len(links)), (rows, columns)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    _, first, group = np.unique(labels, return_index=True, return_inverse=True)
    return [int(index) for index in first[group]]


def batched_by_size(items: Iterable[Item], size: int, size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Items in their order, together until their sizes add up to `size`."""
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if sum(map(size_of, batch)) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
