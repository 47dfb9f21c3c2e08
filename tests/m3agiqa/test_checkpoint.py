import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m3agiqa import Aspect, Assessor, InputError, MosScale, WeightsError
from m3agiqa.backbones.loading import BACKBONE_CLASSES, load_backbone
from m3agiqa.checkpoint.calibration import Calibration
from m3agiqa.checkpoint.card import CARD_FILE, Card, find_checkpoint, predictor_file, read_card, write_card
from m3agiqa.checkpoint.predictor_weights import load_predictor, save_predictor
from m3agiqa.predictor.config import PredictorConfig
from m3agiqa.predictor.model import Predictor

CONFIG = PredictorConfig(input_size=8, dim=16, blocks=2, heads=2, context_length=16)
CARD = Card(
    name="small",
    version="0.3",
    backbone="none",
    learned_from="four drawings",
    fingerprint="abc",
    scales={Aspect.QUALITY: MosScale(0, 100)},
    predictors={Aspect.QUALITY: CONFIG},
    metrics={"quality": {"srcc": 0.5}},
)


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(CONFIG).eval()


@pytest.fixture
def folder(tmp_path: Path, predictor: Predictor) -> Path:
    """A checkpoint of one predictor, and a file in a folder of its own."""
    folder = tmp_path / "small"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "notes.txt").write_text("unchanged")
    save_predictor(predictor, folder, Aspect.QUALITY)
    write_card(CARD, folder)
    return folder


def test_card_roundtrip(folder: Path) -> None:
    assert read_card(folder) == CARD
    assert CARD.title == "small 0.3"
    calibrated = replace(
        CARD, calibration={Aspect.QUALITY: Calibration(3.5, 9, (10.0, 50.0), 2, {"drawn": 3.0})}
    )
    write_card(calibrated, folder)
    assert read_card(folder) == calibrated


def test_a_card_of_before_calibration(folder: Path) -> None:
    path = folder / CARD_FILE
    facts = json.loads(path.read_text())
    del facts["calibration"]
    path.write_text(json.dumps(facts))
    assert read_card(folder) == CARD


def test_other_weights_make_another_digest(folder: Path) -> None:
    first = read_card(folder)
    write_card(first, folder)
    assert read_card(folder).digest == first.digest
    save_predictor(Predictor(CONFIG), folder, Aspect.QUALITY)
    write_card(CARD, folder)
    assert read_card(folder).digest != first.digest


def test_predictor_roundtrip(folder: Path, predictor: Predictor) -> None:
    loaded = load_predictor(folder, Aspect.QUALITY, CONFIG)
    for name, value in predictor.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], value, rtol=1e-2, atol=1e-6), name  # 16 bit
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("name", [predictor_file(Aspect.QUALITY), "adapter/notes.txt"])
def test_changed_file_is_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} is damaged or has been changed"):
        read_card(folder)


def test_missing_file_is_named(folder: Path) -> None:
    (folder / predictor_file(Aspect.QUALITY)).unlink()
    with pytest.raises(WeightsError, match=r"predictor-quality\.safetensors is missing"):
        read_card(folder)


def test_predictors_of_other_seeds_are_listed_and_loaded(folder: Path) -> None:
    torch.manual_seed(1)
    other = Predictor(CONFIG).eval()
    save_predictor(other, folder, Aspect.QUALITY)
    (folder / predictor_file(Aspect.QUALITY)).rename(folder / predictor_file(Aspect.QUALITY, 1))
    save_predictor(Predictor(CONFIG), folder, Aspect.QUALITY)
    write_card(replace(CARD, seeds=2), folder)
    assert read_card(folder).seeds == 2
    loaded = load_predictor(folder, Aspect.QUALITY, CONFIG, 1)
    assert torch.allclose(loaded.projection.weight, other.projection.weight, atol=1e-3)
    (folder / predictor_file(Aspect.QUALITY, 1)).unlink()
    with pytest.raises(WeightsError, match=r"predictor-quality-1\.safetensors is missing"):
        read_card(folder)
    assert read_card(folder, verify=False).seeds == 2, "to be listed, the card is enough"


def test_cards_from_before_there_were_seeds_are_read(folder: Path) -> None:
    facts = json.loads((folder / CARD_FILE).read_text())
    del facts["seeds"]
    (folder / CARD_FILE).write_text(json.dumps(facts))
    assert read_card(folder) == CARD


CHANGES = {
    "no files": {"files": None},
    "predictor not listed": {"files": {}},
    "scale upside down": {"scales": {"quality": {"low": 5, "high": 1}}},
    "unknown aspect": {"scales": {"beauty": {"low": 1, "high": 5}}},
    "predictor without scale": {"scales": {}},
    "unknown field": {"colour": "red"},
    "seeds without predictors": {"seeds": 3},
    "seeds that are no number": {"seeds": "many"},
    "predictor of another kind": {"predictors": {"quality": {"layers": 12}}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_card(folder: Path, change: dict) -> None:
    path = folder / CARD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(WeightsError, match="is damaged or of another version"):
        read_card(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"{}", b"\xff\xfe\x00", b'{"files": {"x": 1}}'])
def test_garbled_card(folder: Path, content: bytes) -> None:
    (folder / CARD_FILE).write_bytes(content)
    with pytest.raises(WeightsError):
        read_card(folder)


def test_predictor_of_another_shape(folder: Path) -> None:
    with pytest.raises(WeightsError, match="does not hold this predictor's weights"):
        load_predictor(folder, Aspect.QUALITY, replace(CONFIG, dim=32))


def test_predictor_that_is_no_safetensors(folder: Path) -> None:
    (folder / predictor_file(Aspect.QUALITY)).write_bytes(b"\x80\x04 a pickle, perhaps")
    with pytest.raises(WeightsError, match="does not hold this predictor's weights"):
        load_predictor(folder, Aspect.QUALITY, CONFIG)


def test_finding(folder: Path) -> None:
    assert find_checkpoint(folder) == folder
    assert read_card(find_checkpoint("nano")).backbone == "nano"
    with pytest.raises(InputError, match=r"There is no model 'huge'\. Give one of .*nano"):
        find_checkpoint("huge")


def test_unknown_backbone(folder: Path) -> None:
    with pytest.raises(WeightsError, match="no backbone 'none' in this version"):
        Assessor.from_pretrained(folder)


def test_backbone_without_its_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Incomplete:
        @classmethod
        def load(cls, folder: Path, progress: object, placement: object) -> None:
            (folder / "connector.safetensors").read_bytes()

    monkeypatch.setitem(BACKBONE_CLASSES, "incomplete", Incomplete)
    with pytest.raises(WeightsError, match=r"cannot be loaded: .*connector\.safetensors"):
        load_backbone("incomplete", folder)
