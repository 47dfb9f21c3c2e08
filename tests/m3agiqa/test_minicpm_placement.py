"""MiniCPM in 8 and 4 bit, and with layers that wait elsewhere than on the device."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tiny_minicpm import CONFIG, published_adapter, tiny_model, write_base
from torch import Tensor, nn

from m3agiqa import Aspect
from m3agiqa.backbones.base import Generation, Request
from m3agiqa.backbones.minicpm import MiniCPMBackbone
from m3agiqa.backbones.minicpm import backbone as backbone_module
from m3agiqa.backbones.minicpm.backbone import (
    LANGUAGE_ADAPTER_FOLDER,
    LANGUAGE_LORA,
    PUBLISHED_ADAPTER_FOLDER,
    VISION_ADAPTER_FOLDER,
    VISION_LORA,
)
from m3agiqa.backbones.minicpm.base_weights import FOLDER_VARIABLE
from m3agiqa.backbones.minicpm.loading import load_model
from m3agiqa.backbones.per_aspect import PerAspect
from m3agiqa.backbones.placement import Placement, Quantization
from m3agiqa.conversation import Conversation
from m3agiqa.errors import WeightsError

ASPECTS = (Aspect.QUALITY, Aspect.AUTHENTICITY)
DISPATCHED = {"llm.model.embed_tokens", "llm.model.norm", "llm.model.rotary_emb", "llm.lm_head", "vpm"}
QUANTIZED = ("Linear8bitLt", "Linear4bit")


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short answers, of weights whose activations are as even as trained ones."""
    monkeypatch.setattr(backbone_module, "MAX_NEW_TOKENS", 5)
    monkeypatch.setitem(CONFIG, "initializer_range", 0.05)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_base(tmp_path / "base")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    return folder


@pytest.fixture
def checkpoint(base: Path, tmp_path: Path) -> Path:
    """An adapter of the published kind for each aspect."""
    for seed, aspect in enumerate(ASPECTS):
        published_adapter(tmp_path / "checkpoint" / aspect / PUBLISHED_ADAPTER_FOLDER, seed)
    return tmp_path / "checkpoint"


@pytest.fixture
def asked() -> list[Request]:
    image = Image.effect_noise((500, 300), 64).convert("RGB")
    return [Request(image, tuple(Conversation.open(aspect, "a cat") for aspect in ASPECTS))]


def spoken(backbone: MiniCPMBackbone | PerAspect, asked: list[Request]) -> list[Generation]:
    said = [each for each in backbone.describe(asked) if isinstance(each, Generation)]
    return sorted(said, key=lambda each: each.row)


def told(asked: list[Request], said: list[Generation]) -> list[Request]:
    [request] = asked
    pairs = zip(request.conversations, said, strict=True)
    return [Request(request.image, tuple(c.describe(each.description) for c, each in pairs))]


def described(asked: list[Request]) -> list[Request]:
    [request] = asked
    return [Request(request.image, tuple(c.describe("a cat, sharp") for c in request.conversations))]


def likeness(found: list[Tensor], expected: list[Tensor]) -> float:
    """The lowest cosine between states."""
    return min(torch.cosine_similarity(f, e).min().item() for f, e in zip(found, expected, strict=True))


def kinds(module: nn.Module) -> set[str]:
    return {type(each).__name__ for each in module.modules()}


# --- fewer bits -------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "near"), [("8bit", 0.99), ("4bit", 0.9)])
def test_a_quantized_language_model_generates_and_is_read_alike(
    base: Path, asked: list[Request], bits: Quantization, near: float
) -> None:
    backbone = MiniCPMBackbone.load(base, placement=Placement("cpu", bits))
    model = backbone.model
    own = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[bits]
    assert {type(layer).__name__ for layer in model.llm.model.layers.modules()} >= {own}
    assert "Linear" not in kinds(model.llm.model)
    for part in (model.vpm, model.resampler, model.get_output_embeddings(), model.get_input_embeddings()):
        assert kinds(part).isdisjoint(QUANTIZED)
    said = spoken(backbone, asked)
    assert all(each.description for each in said)
    states = [each.hidden for each in said]
    for found, expected in zip(backbone.encode(told(asked, said)), states, strict=True):
        assert likeness([found], [expected]) > 0.999
    whole = MiniCPMBackbone.load(base, placement=Placement("cpu"))
    found, expected = backbone.encode(described(asked)), whole.encode(described(asked))
    assert near < likeness(found, expected) < 0.99999


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_published_adapters_share_quantized_layers(
    checkpoint: Path, asked: list[Request], bits: Quantization
) -> None:
    both = MiniCPMBackbone.load(checkpoint, placement=Placement("cpu", bits))
    assert isinstance(both, PerAspect)
    first, second = (backbone.model.llm.model.layers[1] for backbone in both.backbones.values())
    for name in ("mlp.up_proj", "self_attn.q_proj.base_layer"):
        assert stored(first.get_submodule(name)) == stored(second.get_submodule(name))
    said = spoken(both, asked)
    states = both.encode(told(asked, said))
    assert likeness(states, [each.hidden for each in said]) > 0.999
    whole = MiniCPMBackbone.load(checkpoint, placement=Placement("cpu"))
    expected, plain = whole.encode(described(asked)), whole.backbones[Aspect.QUALITY]
    assert likeness(both.encode(described(asked)), expected) > 0.9
    assert likeness(expected[1:], plain.encode(described(asked))[1:]) < 0.9  # each aspect has its own


def stored(layer: nn.Module) -> set[int]:
    """Where in memory the tensors of a quantized layer are."""
    state = getattr(layer, "quant_state", None) or layer.state
    held = [layer.weight, *(value for value in vars(state).values() if isinstance(value, Tensor))]
    return {tensor.data_ptr() for tensor in held}


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_own_adapters_go_onto_quantized_layers(
    base: Path, tmp_path: Path, asked: list[Request], bits: Quantization
) -> None:
    folder = own_adapters(tmp_path / "own")
    tuned = MiniCPMBackbone.load(folder, placement=Placement("cpu", bits))
    expected = MiniCPMBackbone.load(folder, placement=Placement("cpu")).encode(described(asked))
    untuned = MiniCPMBackbone.load(base, placement=Placement("cpu")).encode(described(asked))
    assert likeness(tuned.encode(described(asked)), expected) > 0.9
    assert likeness(untuned, expected) < 0.9


def own_adapters(folder: Path) -> Path:
    """What fine-tuning of the vision encoder and of the language model leaves."""
    model = tiny_model()
    torch.manual_seed(0)
    for module, name, layers in (
        (model.vpm, VISION_ADAPTER_FOLDER, VISION_LORA),
        (model.llm, LANGUAGE_ADAPTER_FOLDER, LANGUAGE_LORA),
    ):
        lora = LoraConfig(r=4, lora_alpha=16, target_modules=layers, init_lora_weights=False)
        get_peft_model(module, lora).save_pretrained(folder / name)
    return folder


def test_without_bitsandbytes_it_says_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3agiqa.backbones.devices.is_bitsandbytes_available", lambda: False)
    with pytest.raises(WeightsError, match="pip install --upgrade bitsandbytes"):
        load_model(base, device="cpu", quantize="4bit")


# --- elsewhere --------------------------------------------------------------------------------


@pytest.fixture
def dispatched(base: Path, tmp_path: Path) -> MiniCPMBackbone:
    """One layer waits on the disk, as layers do in the CPU's memory where the device is a GPU."""
    places = dict.fromkeys(DISPATCHED, "cpu")
    places |= {"llm.model.layers.0": "cpu", "llm.model.layers.1": "disk", "resampler": "cpu"}
    offload = {"device_map": places, "offload_folder": tmp_path / "offload"}
    return MiniCPMBackbone.from_folder(base, device="cpu", **offload)


def test_layers_that_wait_elsewhere_change_nothing(
    base: Path, dispatched: MiniCPMBackbone, asked: list[Request]
) -> None:
    assert dispatched.model.llm.model.layers[1].mlp.up_proj.weight.is_meta
    whole = MiniCPMBackbone.load(base, placement=Placement("cpu"))
    found, expected = spoken(dispatched, asked), spoken(whole, asked)
    assert [each.description for each in found] == [each.description for each in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.hidden, other.hidden)
    for one, other in zip(dispatched.encode(described(asked)), whole.encode(described(asked)), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(dispatched.head, whole.head)


def test_adapters_go_onto_layers_that_wait_elsewhere(
    dispatched: MiniCPMBackbone, checkpoint: Path, tmp_path: Path, asked: list[Request]
) -> None:
    whole = MiniCPMBackbone.load(checkpoint, placement=Placement("cpu"))
    siblings = {aspect: dispatched.sibling(checkpoint / aspect) for aspect in ASPECTS}
    plain = dispatched.encode(described(asked))
    found, expected = PerAspect(siblings).encode(described(asked)), whole.encode(described(asked))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(plain, dispatched.encode(described(asked)))  # the base has no adapter
    folder = own_adapters(tmp_path / "own")
    tuned = MiniCPMBackbone.load(folder, placement=Placement("cpu")).encode(described(asked))
    for one, other in zip(dispatched.sibling(folder).encode(described(asked)), tuned, strict=True):
        torch.testing.assert_close(one, other)
