"""What the sources of cases have in common: data sets, model versions on them, and people's opinions."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Protocol

import pandas as pd

from m3agiqa.aspects import Aspect


@dataclass(frozen=True)
class Version:
    """A model that has judged images of a data set."""

    key: str
    """Its source's prefix, a colon, and what the source knows it by."""
    title: str


@dataclass(frozen=True)
class DataSet:
    """Images with scores of people, and the models that have judged them."""

    key: str
    title: str
    versions: tuple[Version, ...]
    mos_label: str
    """Whose scores these are."""

    def with_version(self, version: Version) -> DataSet:
        return replace(self, versions=(*self.versions, version))


@dataclass(frozen=True)
class Judged:
    """What a model has judged: each an aspect of an image."""

    cases: pd.DataFrame
    """Those with a score of people, in the form of annotation.failures.error_table."""
    waiting: int
    """How many have none yet."""


@dataclass(frozen=True)
class Opinion:
    """What one person says of one aspect of an image."""

    aspect: Aspect
    annotator: str
    score: float
    low: float
    high: float
    description: str | None
    agrees: bool
    """Whether they confirm the model's own answer."""
    tags: tuple[str, ...]
    comment: str | None


class Source(Protocol):
    """Where cases come from."""

    prefix: str

    def data_sets(self) -> list[DataSet]: ...

    def stamp(self, version: str) -> Hashable:
        """A value that changes whenever `judged` would answer something else."""

    def judged(self, version: str) -> Judged:
        """What a model version has judged. Raises InputError if that cannot be read."""

    def opinions(self, item: str) -> list[Opinion]:
        """What single people say of an image, where the source knows."""
