"""All data sets and model versions that can be looked into, and their tables, kept while they are valid."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from annotation.failures.error_table import DataSet, Judged, Source, Version, beside
from annotation.failures.filters import Nearer, Order, View, generators, tags
from annotation.failures.from_annotations import Annotations
from annotation.failures.from_training_runs import RunReports
from annotation.failures.image_map import is_image_group
from annotation.failures.slices import members_of
from annotation.store import Store
from m3agiqa.errors import InputError

CACHED_TABLES = 8  # tables


@dataclass(frozen=True)
class Choices:
    """What can be chosen from, given the data set and the models of a view."""

    data_sets: list[DataSet]
    models: list[Version]
    others: list[Version]
    generators: list[str]
    tags: list[str]


class Catalogue:
    """The annotation database and the training runs."""

    def __init__(self, store: Store, runs: Path) -> None:
        self._sources: dict[str, Source] = {
            source.prefix: source for source in (Annotations(store), RunReports(runs))
        }
        self._tables: OrderedDict[str, tuple[Hashable, Judged]] = OrderedDict()
        self._lock = threading.Lock()

    def data_sets(self) -> list[DataSet]:
        return [data_set for source in self._sources.values() for data_set in source.data_sets()]

    def source(self, key: str) -> Source:
        """Of a data set or version. Raises InputError for a key that nothing has."""
        try:
            return self._sources[key.partition(":")[0]]
        except KeyError as error:
            raise InputError("There is no such data set; choose one from the list.") from error

    def settle(
        self, wanted: View, visible: Callable[[str, pd.DataFrame], pd.DataFrame] = lambda model, table: table
    ) -> tuple[View, Choices]:
        """The view with everything that is not there (any more) replaced by what is, and the choices.

        `visible`: what may be read of a model's cases.
        """
        sets = self.data_sets()
        filled = [data_set for data_set in sets if data_set.versions] or sets
        data = next((data_set for data_set in sets if data_set.key == wanted.data), filled[0])
        models = list(data.versions)
        model = _chosen(models, wanted.model) or (models[0].key if models else "")
        others = self.comparable(data, model) if model else []
        other = _chosen(others, wanted.other)
        view = replace(wanted, data=data.key, model=model, other=other)
        if not other:
            order = Order.WORST if view.order in (Order.GAIN, Order.LOSS) else view.order
            view = replace(view, nearer=Nearer.ANY, order=order)
        made_by, used_tags, has_slice = [], [], False
        if model:
            try:
                table = visible(model, self.table(model, other))
                made_by, used_tags, has_slice = (
                    generators(table),
                    tags(table),
                    is_image_group(view.slice) or bool(members_of(table, view.slice).any()),
                )
            except InputError:
                pass  # whoever looks at the table is told
        view = replace(
            view,
            generator=view.generator if view.generator in made_by else "",
            tag=view.tag if view.tag in used_tags else "",
            slice=view.slice if has_slice else "",
        )
        return view, Choices(sets, models, others, made_by, used_tags)

    def comparable(self, data: DataSet, model: str) -> list[Version]:
        """Versions that may be set beside a model: those of its data set first, then of the same source."""
        source = self.source(data.key).prefix
        others = [data_set for data_set in self.data_sets() if data_set.key != data.key]
        same_source = [data_set for data_set in others if self.source(data_set.key).prefix == source]
        versions = [version for data_set in (data, *same_source) for version in data_set.versions]
        return [version for version in versions if version.key != model]

    def table(self, model: str, other: str = "") -> pd.DataFrame:
        """The cases of a model version, or those that it has in common with another one.

        Raises InputError if a version is gone, its report broken, or the two have nothing in common.
        """
        first = self._judged(model).cases
        if not other:
            return first
        both = beside(first, self._judged(other).cases)
        if both.empty and not first.empty:
            raise InputError(
                "These two models have not judged any image in common; choose another one to compare with."
            )
        return both

    def waiting(self, model: str) -> int:
        """How many judgements of a model version no person has scored yet."""
        return self._judged(model).waiting

    def _judged(self, version: str) -> Judged:
        source = self.source(version)
        stamp = source.stamp(version)
        with self._lock:
            kept = self._tables.get(version)
            if kept and kept[0] == stamp:
                self._tables.move_to_end(version)
                return kept[1]
        judged = source.judged(version)
        with self._lock:
            self._tables[version] = stamp, judged
            while len(self._tables) > CACHED_TABLES:
                self._tables.popitem(last=False)
        return judged


def _chosen(versions: list[Version], key: str) -> str:
    return key if key in [version.key for version in versions] else ""
