"""Models of transformers in 8 and 4 bit, and with layers that wait elsewhere than on the device."""

from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from held_bytes import held_bytes
from hf_models import TEXT, tiny_folder
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from m3agiqa import Aspect
from m3agiqa.backbones.base import Generation, Request
from m3agiqa.backbones.hf import HfBackbone
from m3agiqa.backbones.hf.backbone import ADAPTER_FOLDER
from m3agiqa.backbones.loading import load_backbone
from m3agiqa.backbones.memory import spread, weight_bytes
from m3agiqa.backbones.placement import Placement, Quantization
from m3agiqa.conversation import Conversation
from m3agiqa.errors import WeightsError

ASPECTS = (Aspect.QUALITY, Aspect.AUTHENTICITY)
NOWHERE = Path("there-is-no-checkpoint")
QUANTIZED = {"Linear8bitLt", "Linear4bit"}


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short answers, of weights whose activations are as even as trained ones."""
    monkeypatch.setattr("m3agiqa.backbones.hf.backbone.MAX_NEW_TOKENS", 5)
    monkeypatch.setitem(TEXT, "initializer_range", 0.08)


@pytest.fixture
def folder(tmp_path: Path, family: str) -> Path:
    return tiny_folder(family, tmp_path / family)


@pytest.fixture
def asked(picture: Image.Image) -> list[Request]:
    return [Request(picture, tuple(Conversation.open(aspect, "a ball") for aspect in ASPECTS))]


def loaded(folder: Path, bits: Quantization | None = None, checkpoint: Path = NOWHERE) -> HfBackbone:
    return load_backbone(f"hf:{folder}", checkpoint, placement=Placement("cpu", bits))


def spoken(backbone: HfBackbone, asked: list[Request]) -> list[Generation]:
    said = [each for each in backbone.describe(asked) if isinstance(each, Generation)]
    return sorted(said, key=lambda each: each.row)


def told(asked: list[Request], *descriptions: str) -> list[Request]:
    [request] = asked
    pairs = zip(request.conversations, descriptions, strict=True)
    return [Request(request.image, tuple(c.describe(text) for c, text in pairs))]


def likeness(found: list[Tensor], expected: list[Tensor]) -> float:
    """The lowest mean cosine between states."""
    return min(torch.cosine_similarity(f, e).mean().item() for f, e in zip(found, expected, strict=True))


def kinds(module: nn.Module) -> set[str]:
    return {type(each).__name__ for each in module.modules()}


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_quantized_language_model_generates_and_is_read_alike(
    folder: Path, asked: list[Request], bits: Quantization
) -> None:
    backbone = loaded(folder, bits)
    anatomy = backbone.anatomy
    assert "Linear" not in kinds(anatomy.language["model"]) and kinds(anatomy.language["model"]) & QUANTIZED
    for part in (anatomy.vision, anatomy.connector, anatomy.language["head"]):
        assert kinds(part).isdisjoint(QUANTIZED)
    said = spoken(backbone, asked)
    states = backbone.encode(told(asked, *(each.description for each in said)))
    assert likeness(states, [each.hidden for each in said]) > 0.999
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(backbone.model.config)
    expected = weight_bytes(empty, empty.get_decoder(), backbone.model.dtype, bits)[""]
    assert held_bytes(backbone.model) == pytest.approx(expected, rel=0.25)  # tables outweigh layers so small
    same = told(asked, "It is sharp.", "It is real.")
    assert 0.9 < likeness(backbone.encode(same), loaded(folder).encode(same)) < 0.99999


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_5_vl", "llava_onevision"])
def test_layers_that_wait_elsewhere_change_nothing(
    folder: Path, asked: list[Request], tmp_path: Path
) -> None:
    same = told(asked, "It is sharp.", "It is real.")
    whole, other = loaded(folder), loaded(folder)
    decoder = other.anatomy.language["model"]
    sizes = weight_bytes(other.model, decoder, other.model.dtype)
    rooms = {0: sizes[""] - 1, "cpu": sizes[""]}  # beside a layer one of those that wait must have room
    places = spread(other.model, decoder, other.model.dtype, None, rooms)
    places = {name: {0: "cpu", "cpu": "disk"}[place] for name, place in places.items()}
    assert [places[name] for name in places if name.endswith(("layers.0", "layers.1"))].count("disk") == 2
    offload = str(tmp_path / "offload")
    other.model = dispatch_model(other.model, places, main_device="cpu", offload_dir=offload)
    for aspect in ASPECTS:
        language_adapter(folder, tmp_path / "checkpoint" / aspect / ADAPTER_FOLDER)
    tuned = loaded(folder, checkpoint=tmp_path / "checkpoint").backbones[Aspect.QUALITY].encode(same)
    sibling = other.sibling(tmp_path / "checkpoint" / Aspect.QUALITY)
    for found, expected in ((other, whole.encode(same)), (sibling, tuned)):
        for one, two in zip(found.encode(same), expected, strict=True):
            torch.testing.assert_close(one, two)
    assert likeness(tuned, whole.encode(same)) < 0.99
    found, expected = spoken(other, asked), spoken(whole, asked)
    assert [each.description for each in found] == [each.description for each in expected]


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("family", ["smolvlm"])
def test_adapters_go_onto_quantized_layers(
    folder: Path, asked: list[Request], tmp_path: Path, bits: Quantization
) -> None:
    same = told(asked, "It is sharp.", "It is real.")
    for aspect in ASPECTS:
        language_adapter(folder, tmp_path / "checkpoint" / aspect / ADAPTER_FOLDER)
    both = loaded(folder, bits, tmp_path / "checkpoint")
    expected = loaded(folder, checkpoint=tmp_path / "checkpoint").encode(same)
    assert likeness(both.encode(same), expected) > 0.9
    assert likeness(loaded(folder, bits).encode(same), expected) < 0.99
    first, second = (each.anatomy.language["model"].layers[1] for each in both.backbones.values())
    assert first.mlp.up_proj.base_layer.weight.data_ptr() == second.mlp.up_proj.base_layer.weight.data_ptr()


@pytest.mark.parametrize("family", ["smolvlm"])
def test_an_adapter_of_a_deeper_model_is_reported(folder: Path, tmp_path: Path) -> None:
    language_adapter(folder, tmp_path / ADAPTER_FOLDER)
    file = tmp_path / ADAPTER_FOLDER / "adapter_model.safetensors"
    weights = load_file(file)
    deeper = {name.replace("layers.0.", "layers.7."): value.clone() for name, value in weights.items()}
    save_file(weights | deeper, file)
    with pytest.raises(WeightsError, match=r"is for another model: .*layers\.7\..* has no counterpart"):
        loaded(folder, checkpoint=tmp_path)


def language_adapter(folder: Path, out: Path) -> None:
    part = loaded(folder).parts["language"]
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=32, target_modules=part.lora, init_lora_weights=False)
    get_peft_model(part.module, lora).save_pretrained(out)


def named(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
