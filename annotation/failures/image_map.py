"""Images by what they show: a map of them, those like one of them, and near-duplicates.

An image's vector comes from nano's vision encoder, whatever model is served. It is computed once, in the
background, and kept in a file beside the data.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import svds

from m3agiqa.errors import InputError, M3AgiqaError
from m3agiqa.files import atomic_path
from m3agiqa.images import open_image

log = logging.getLogger(__name__)

Encode = Callable[[Sequence[Image.Image]], np.ndarray]
"""N RGB images -> [N, d], each of length 1."""

MIN_DUPLICATE_SIMILARITY = 0.8
"""Dot product from which on two images are near-duplicates (benchmarks/near_duplicates.py)."""
MOST_SIMILAR = 24
"""Images of a group "similar to", that image included."""
IMAGES_AT_ONCE = 8
ROWS_AT_ONCE = 1000  # of the matrix of all pairs
SAVE_EVERY = 400  # images, so that a server that ends has not worked in vain
CACHED_MAPS = 8  # maps
KEY_BYTES = 16
WAIT_SECONDS = 0.2  # between two looks whether the machine is free again

NEAR_DUPLICATES = "near-duplicates"
SIMILAR_PREFIX = "similar to: "
AREA_PREFIX = "area: "
AREA_POINTS = re.compile(r"[01]\.?\d{0,3},[01]\.?\d{0,3}( [01]\.?\d{0,3},[01]\.?\d{0,3}){2,149}")
AREA_GRID = 1000  # cells a side, in which an area is drawn to see what lies in it


@dataclass(frozen=True)
class MapProgress:
    """How far the vectors are that a map needs."""

    done: int
    total: int
    problem: str = ""
    """Why there will be no map."""


@dataclass(frozen=True)
class ImageMap:
    """Images by what they show. Those that cannot be read are on no place, and like no other."""

    rows: dict[str, int]
    """By file."""
    vectors: np.ndarray
    """[N, d], each of length 1, or 0 for an image that cannot be read."""

    @cached_property
    def places(self) -> np.ndarray:
        """[N, 2] in [0, 1], by the two directions in which the vectors differ most (PCA); NaN for none."""
        readable = self.vectors.any(axis=1)
        places = np.full((len(self.vectors), 2), np.nan)
        shown = self.vectors[readable]
        centred = shown - shown.mean(axis=0) if len(shown) else shown
        if len(shown) > 2 and (centred**2).sum() > 1e-6:
            _, _, directions = svds(centred, k=2, v0=np.ones(min(centred.shape)))
            found = centred @ directions[::-1].T
            found *= np.sign(found[np.abs(found).argmax(axis=0), [0, 1]])  # a sign means nothing: fix it
            spread = np.ptp(found, axis=0)
            places[readable] = (found - found.min(axis=0)) / np.where(spread > 0, spread, 1)
        else:
            places[readable] = 0.5
        return places

    @cached_property
    def duplicates(self) -> np.ndarray:
        """[N]: the number of an image's group of near-duplicates, -1 for an image without any."""
        size = len(self.vectors)
        pairs = [np.empty((0, 2), int)]
        for start in range(0, size, ROWS_AT_ONCE):
            likeness = self.vectors[start : start + ROWS_AT_ONCE] @ self.vectors.T
            pairs.append(np.add(np.argwhere(likeness >= MIN_DUPLICATE_SIMILARITY), [start, 0]))
        first, second = np.concatenate(pairs).T
        graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(size, size))
        _, groups = connected_components(graph, directed=False)
        return np.where(np.bincount(groups, minlength=1)[groups] > 1, groups, -1)

    def similar(self, file: str) -> list[int]:
        """Rows of the images that are most like one of them, which comes first."""
        likeness = self.vectors @ self.vectors[self.rows[file]]
        likeness[self.rows[file]] = np.inf
        return np.argsort(-likeness, kind="stable")[:MOST_SIMILAR].tolist()


# --- groups of cases ---------------------------------------------------------------------------


def is_image_group(name: str) -> bool:
    """Whether a group of cases by this name is one of images, which needs their map."""
    return name == NEAR_DUPLICATES or name.startswith((SIMILAR_PREFIX, AREA_PREFIX))


def group_title(name: str) -> str:
    """What people call a group of cases, by its name in links."""
    if name.startswith(SIMILAR_PREFIX):
        return f"images like {name.removeprefix(SIMILAR_PREFIX)}, the most alike first"
    return "the area marked on the map" if name.startswith(AREA_PREFIX) else name


def group_ranks(table: pd.DataFrame, images: ImageMap, name: str) -> pd.Series:
    """Of each case the rank of its image in a group of that name, NaN outside; equal ranks have no order."""
    rows = table["image"].map(images.rows).to_numpy(int)
    ranks = np.full(len(images.vectors), np.nan)
    if name == NEAR_DUPLICATES:
        ranks = np.where(images.duplicates >= 0, images.duplicates, np.nan)
    elif name.startswith(SIMILAR_PREFIX):
        files = table["image"][table["item"] == name.removeprefix(SIMILAR_PREFIX)]
        if len(files):
            similar = images.similar(files.iloc[0])
            ranks[similar] = range(len(similar))
    elif AREA_POINTS.fullmatch(points := name.removeprefix(AREA_PREFIX)):
        ranks[_inside(images.places, points)] = 0
    return pd.Series(ranks[rows], table.index)


def _inside(places: np.ndarray, points: str) -> np.ndarray:
    """Which places lie within a polygon of points "x,y x,y ..."."""
    grid = Image.new("1", (AREA_GRID + 1, AREA_GRID + 1))
    corners = [tuple(AREA_GRID * float(number) for number in point.split(",")) for point in points.split()]
    ImageDraw.Draw(grid).polygon(corners, fill=1, outline=1)
    cells = np.nan_to_num(places * AREA_GRID).round().astype(int)
    return np.asarray(grid)[cells[:, 1], cells[:, 0]] & ~np.isnan(places[:, 0])


# --- computing them ----------------------------------------------------------------------------


def nano_encoder() -> Encode:
    """The published vision encoder of nano. Raises WeightsError."""
    # These take seconds to import, in which the page can answer already.
    from m3agiqa.backbones.nano.efficientnet_lite import content_vectors, pretrained_encoder
    from m3agiqa.threads import follow_load

    encoder = pretrained_encoder()

    def encode(images: Sequence[Image.Image]) -> np.ndarray:
        follow_load()
        return content_vectors(encoder, images).numpy()

    return encode


class ImageMaps:
    """Maps of whatever images are asked for; one thread computes what is lacking."""

    def __init__(
        self,
        file: Path,
        load: Callable[[], Encode] = nano_encoder,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """`file` keeps the vectors; while `is_busy`, others need the machine more."""
        self._file, self._load, self._is_busy = file, load, is_busy
        self._vectors: dict[bytes, np.ndarray] | None = None
        self._unreadable: set[bytes] = set()
        self._maps: OrderedDict[tuple[bytes, ...], ImageMap] = OrderedDict()
        self._wanted: OrderedDict[tuple[bytes, ...], tuple[str, ...]] = OrderedDict()
        self._problem = ""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def known(self, files: Sequence[str]) -> ImageMap | None:
        """The map of these files (each once) if it is there; nothing is computed."""
        with self._lock:
            return self._maps.get(_keys(files))

    def of(self, files: Sequence[str]) -> ImageMap | MapProgress:
        """The map of these files (each once), or how far it is: asking begins to compute it."""
        keys = _keys(files)
        with self._lock:
            if keys in self._maps:
                self._maps.move_to_end(keys)
                return self._maps[keys]
            if self._problem:
                problem, self._problem = self._problem, ""  # asking again tries again
                return MapProgress(0, len(files), problem)
            self._wanted[keys] = tuple(files)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="image-map", daemon=True)
                self._thread.start()
            known = self._vectors or {}
            done = sum(key in known or key in self._unreadable for key in keys)
            return MapProgress(done, len(files))

    def _work(self) -> None:
        encode: Encode | None = None
        while True:
            with self._lock:
                if not self._wanted:
                    self._thread = None
                    return
                keys, files = next(iter(self._wanted.items()))
            try:
                self._read()
                lacking = [(key, file) for key, file in zip(keys, files, strict=True) if not self._has(key)]
                if lacking:
                    encode = encode or self._load()
                    self._compute(encode, lacking)
                made = self._map(keys, files)
            except M3AgiqaError as error:
                problem = str(error)
            except Exception:  # a thread that ends without a word would leave pages waiting for ever
                log.exception("The map of images failed")
                problem = "The map could not be made; the app's log says more."
            else:
                problem = ""
            with self._lock:
                self._problem = problem
                del self._wanted[keys]
                if not problem:
                    self._maps[keys] = made
                    while len(self._maps) > CACHED_MAPS:
                        self._maps.popitem(last=False)

    def _has(self, key: bytes) -> bool:
        assert self._vectors is not None
        return key in self._vectors or key in self._unreadable

    def _compute(self, encode: Encode, lacking: Sequence[tuple[bytes, str]]) -> None:
        assert self._vectors is not None
        for start in range(0, len(lacking), IMAGES_AT_ONCE):
            while self._is_busy():
                time.sleep(WAIT_SECONDS)
            keys, images = [], []
            for key, file in lacking[start : start + IMAGES_AT_ONCE]:
                try:
                    images.append(open_image(Path(file)))
                    keys.append(key)
                except InputError:
                    self._unreadable.add(key)
            if images:
                found = dict(zip(keys, encode(images).astype(np.float16), strict=True))
                with self._lock:
                    self._vectors.update(found)
            if start // SAVE_EVERY != (start + IMAGES_AT_ONCE) // SAVE_EVERY:
                self._save()
        self._save()

    def _map(self, keys: Sequence[bytes], files: Sequence[str]) -> ImageMap:
        assert self._vectors is not None
        size = next((len(vector) for vector in self._vectors.values()), 1)
        nothing = np.zeros(size, np.float16)
        vectors = np.stack([self._vectors.get(key, nothing) for key in keys]).astype(np.float32)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        made = ImageMap({file: row for row, file in enumerate(files)}, vectors)
        _ = made.places, made.duplicates  # here, where no page waits for them
        return made

    def _read(self) -> None:
        """What an earlier server has kept; a damaged file is as good as none."""
        if self._vectors is not None:
            return
        vectors: dict[bytes, np.ndarray] = {}
        try:
            with np.load(self._file, allow_pickle=False) as kept:
                vectors = dict(zip(map(bytes, kept["keys"]), kept["vectors"], strict=True))
        except FileNotFoundError:
            pass
        except Exception as error:  # NumPy's are of many kinds
            log.warning("%s cannot be read and is made anew: %s", self._file, error)
        with self._lock:
            self._vectors = vectors

    def _save(self) -> None:
        if not self._vectors:
            return
        keys = np.array([list(key) for key in self._vectors], np.uint8)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self._file) as new, new.open("wb") as file:
                np.savez(file, keys=keys, vectors=np.stack(list(self._vectors.values())))
        except OSError as error:
            log.warning("%s cannot be written, so the map is made anew next time: %s", self._file, error)


def _keys(files: Sequence[str]) -> tuple[bytes, ...]:
    """By path, time of the last change and size: what is in a file that has changed is not known."""
    return tuple(hashlib.blake2b(_stamp(file).encode(), digest_size=KEY_BYTES).digest() for file in files)


def _stamp(file: str) -> str:
    try:
        facts = os.stat(file)  # noqa: PTH116  # thousands of Paths take longer than the looks themselves
    except OSError:
        return f"{file} is gone"
    return f"{file} {facts.st_mtime_ns} {facts.st_size}"
