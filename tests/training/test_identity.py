"""Base weights that are not the same have keys of their own, also where nothing was trained."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from scripted_backbone import ScriptedBackbone, drawings

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.backbones.base_model import BaseModel
from m3agiqa.backbones.loading import BACKBONE_CLASSES
from m3agiqa.errors import WeightsError
from training.data.variants import own_variants
from training.stages.describe import describe
from training.stages.hidden_cache import HiddenCache, backbone_id

NOTHING = Path("nothing was trained")
COMMITS = ("a" * 40, "b" * 40)


def model(folder: Path, value: float, dtype: torch.dtype = torch.float32) -> Path:
    """What tells models apart is there; no library could load it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file({"weight": torch.full((300, 40), value, dtype=dtype)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache on this machine; nothing is in it, and the network is not asked."""
    for name in ("M3AGIQA_HUB_FOLDER", "M3AGIQA_MINICPM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def keep(hub: Path, repository: str, commit: str) -> None:
    """As if that commit had been downloaded as the main branch."""
    root = hub / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    model(root / "snapshots" / commit, 1.0)


@pytest.mark.parametrize("kind", ["hf", "minicpm"])
def test_the_content_of_a_folder_counts(
    kind: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(folder: Path) -> str:
        monkeypatch.setenv("M3AGIQA_MINICPM", str(folder))
        return backbone_id("minicpm" if kind == "minicpm" else f"hf:{folder}", NOTHING, fetch=True)

    one, same = model(tmp_path / "one", 1.0), model(tmp_path / "moved" / "one", 1.0)
    other, half = model(tmp_path / "two", 2.0), model(tmp_path / "half", 1.0, torch.bfloat16)
    assert identity(one) == identity(one)
    assert identity(one).split()[-1] == identity(same).split()[-1], "wherever it is"
    assert len({identity(folder).split()[-1] for folder in (one, other, half)}) == 3
    (same / "config.json").write_text('{"changed": true}')
    assert identity(one).split()[-1] != identity(same).split()[-1]


@pytest.mark.parametrize(
    ("backbone", "repository"),
    [("hf:org/name", "org/name"), ("minicpm", "openbmb/MiniCPM-Llama3-V-2_5")],
    ids=["hf", "minicpm"],
)
def test_the_commit_of_the_hub_counts(backbone: str, repository: str, hub: Path) -> None:
    absent = backbone_id(backbone, NOTHING)
    with pytest.raises(WeightsError, match=f"{repository} is not, or not wholly, on this machine"):
        backbone_id(backbone, NOTHING, fetch=True)
    found = [absent]
    for commit in COMMITS:
        keep(hub, repository, commit)
        found.append(backbone_id(backbone, NOTHING))
        assert commit in found[-1]
        assert backbone_id(backbone, NOTHING, fetch=True) == found[-1]
    assert len(set(found)) == 3
    if backbone != "minicpm":
        assert COMMITS[0] in backbone_id(f"{backbone}@{COMMITS[0]}", NOTHING), "as it is pinned"


def test_what_was_trained_says_what_it_is_made_of(hub: Path, tmp_path: Path) -> None:
    keep(hub, "org/name", COMMITS[0])
    keep(hub, "org/name", COMMITS[1])
    (tmp_path / "tuned").mkdir()
    BaseModel("org/name", COMMITS[0]).write(tmp_path / "tuned")
    assert COMMITS[0] in backbone_id("hf:org/name", tmp_path / "tuned")


class Fetched(ScriptedBackbone):
    """Its base weights are another commit now and then."""

    here: ClassVar[str | None] = None
    published: ClassVar[str] = "first"

    @classmethod
    def base_version(cls, folder: Path, fetch: bool = False) -> str:
        if fetch:
            cls.here = cls.published
        if cls.here is None:
            raise WeightsError("It is not here.")
        return cls.here

    def note_base(self, folder: Path) -> None:
        raise AssertionError("nothing is trained here")


def test_nothing_is_kept_under_the_name_of_another_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONE_CLASSES, "nano", Fetched)
    monkeypatch.setattr(ScriptedBackbone, "asked", [])
    monkeypatch.setattr(Fetched, "here", None)
    cases = own_variants(drawings(tmp_path / "data", 6, MosScale(1, 5), (Aspect.QUALITY,)), (Aspect.QUALITY,))
    cache = HiddenCache(tmp_path / "hidden")

    def missing() -> int:
        identity = backbone_id("nano", NOTHING)
        return sum(case.key(Aspect.QUALITY, identity) not in cache for case in cases)

    describe(cases[:4], "nano", NOTHING, cache)
    assert missing() == 2, "though at first it was not known which base there would be"
    monkeypatch.setattr(Fetched, "published", "second")
    describe(cases[:4], "nano", NOTHING, cache)
    assert missing() == 2, "nothing was to be said, so that nothing was fetched"
    describe(cases, "nano", NOTHING, cache)
    assert missing() == 0, "all anew, as the base has changed"
    assert len(cache.entries) == 4 + 6
