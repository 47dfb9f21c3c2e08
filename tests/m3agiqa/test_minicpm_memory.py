"""What memory MiniCPM is said to need, against what a small one takes."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from held_bytes import held_bytes
from PIL import Image
from tiny_minicpm import CONFIG, published_adapter, write_base
from torch.profiler import ProfilerActivity, profile

from m3agiqa import Aspect, InputError
from m3agiqa.backbones.base import Request
from m3agiqa.backbones.minicpm import MiniCPMBackbone, memory
from m3agiqa.backbones.minicpm import backbone as backbone_module
from m3agiqa.backbones.minicpm.backbone import PUBLISHED_ADAPTER_FOLDER
from m3agiqa.backbones.minicpm.base_weights import FOLDER_VARIABLE
from m3agiqa.backbones.minicpm.loading import PUBLISHED_SETTINGS, load_model, read_config, without_weights
from m3agiqa.backbones.minicpm.memory import Memory, Work, memory_needed
from m3agiqa.backbones.minicpm.resampler import Resampler
from m3agiqa.backbones.minicpm.slicing import sliced
from m3agiqa.backbones.placement import Placement, Quantization
from m3agiqa.cli import main
from m3agiqa.conversation import Conversation
from m3agiqa.errors import TooLittleMemory

DOCS = Path(__file__).parents[2] / "docs" / "paper-model.md"
ASPECTS = (Aspect.QUALITY, Aspect.AUTHENTICITY)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Wide enough for its layers to outweigh the rest; in widths that no CPU packs anew."""
    monkeypatch.setitem(CONFIG, "hidden_size", 480)
    monkeypatch.setitem(CONFIG, "intermediate_size", 1680)
    vision = {**CONFIG["vision_config"], "hidden_size": 136, "intermediate_size": 500}
    monkeypatch.setitem(CONFIG, "vision_config", vision)
    folder = write_base(tmp_path / "base")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    monkeypatch.setattr(backbone_module, "MAX_NEW_TOKENS", 4)
    return folder


def needed(base: Path, bits: Quantization | None = None, **work: Any) -> Memory:
    return memory_needed(without_weights(read_config(base)), torch.float32, bits, Work(**work))


@pytest.mark.parametrize("bits", [None, "8bit", "4bit"])
def test_weights_within_two_percent(base: Path, bits: Quantization | None) -> None:
    held = held_bytes(load_model(base, device="cpu", quantize=bits))
    assert held == pytest.approx(needed(base, bits).weights, rel=0.02)


@pytest.mark.parametrize("bits", [None, "4bit"])
def test_adapters_within_two_percent(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: Quantization | None
) -> None:
    monkeypatch.setattr(memory, "LORA_RANK", 4)  # as the adapters have that are made here
    for seed, aspect in enumerate(ASPECTS):
        published_adapter(tmp_path / aspect / PUBLISHED_ADAPTER_FOLDER, seed)
    before = resamplers()
    both = MiniCPMBackbone.load(tmp_path, placement=Placement("cpu", bits))
    assert resamplers() == before + 2  # what they take the place of is not kept
    expected = needed(base, bits, adapters=2)
    # These adapters leave the embeddings as they were, so that both have them in common.
    common = both.backbones[Aspect.QUALITY].model.get_input_embeddings().weight.nbytes
    held = held_bytes(*(backbone.model for backbone in both.backbones.values()))
    total = expected.weights + expected.adapters - expected.replaced - common
    assert held == pytest.approx(total, rel=0.02)


def resamplers() -> int:
    gc.collect()
    return sum(type(each) is Resampler for each in gc.get_objects())


def test_the_cache_to_the_byte(base: Path) -> None:
    backbone = MiniCPMBackbone.from_folder(base, device="cpu")
    config, [request] = backbone.model.config, requests((500, 300), 2)
    state = backbone._begin([request])
    layers = state.cache.layers
    rows, columns = state.mask.shape
    assert rows == 2
    begun = memory.beginning_length(config, sliced(request.image, backbone.slicing))
    assert abs(begun - columns) <= memory.BEGIN
    found = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    assert found == memory.cache_bytes(config, rows, columns, 4)


@pytest.mark.parametrize(("size", "aspects"), [((300, 300), 3), ((700, 500), 1)])
def test_activations_within_a_quarter(
    base: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], aspects: int
) -> None:
    backbone = MiniCPMBackbone.from_folder(base, device="cpu")
    config, [request] = backbone.model.config, requests(size, aspects)
    slices = sliced(request.image, backbone.slicing)
    with torch.inference_mode():
        seeing = peak(lambda: backbone.model.vision_tower(slices))
        assert 0.75 < seeing / memory.vision_peak(config, slices, 4) < 1.25
        embedded = torch.randn(1, 900, config.hidden_size)
        reading = peak(lambda: backbone.model.llm.model(inputs_embeds=embedded, use_cache=False))
        # Embedded twice before it comes here.
        expected = memory.reading_peak(config, 1, 900, 900, 4) - 2 * embedded.nbytes
        assert 0.75 < reading / expected < 1.25
    asked = max(len(tokens.ids) for tokens in backbone._tokens([request]))
    monkeypatch.setattr(memory, "QUESTION", asked)  # long, where bytes are the tokens
    whole = peak(lambda: list(backbone.describe([request])))
    expected = needed(base, size=size, aspects=aspects)
    assert 0.75 < whole / (expected.cache + expected.activations) < 1.25


def requests(size: tuple[int, int], aspects: int) -> list[Request]:
    image = Image.effect_noise(size, 64).convert("RGB")
    return [Request(image, tuple(Conversation.open(aspect, "a cat") for aspect in list(Aspect)[:aspects]))]


def peak(work: Callable[[], object]) -> int:
    """The most bytes of tensors that were there at one time, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


# --- the full-size model ----------------------------------------------------------------------


def test_the_full_size_model() -> None:
    model = without_weights(read_config(PUBLISHED_SETTINGS))
    whole = memory_needed(model, torch.float16)
    assert whole.weights == pytest.approx(34_148_369_344 // 2, rel=0.02)  # published for 32 bit
    fewer = [memory_needed(model, torch.float16, bits).weights for bits in ("8bit", "4bit")]
    assert whole.weights > fewer[0] > fewer[1] > whole.weights / 3


def test_as_many_images_at_once_as_there_is_memory_for() -> None:
    model, slicing = without_weights(read_config(PUBLISHED_SETTINGS)), memory.AS_PUBLISHED

    def at_once(free: int) -> int:
        return memory.images_at_once(model.config, torch.bfloat16, free, slicing)

    for images in (1, 2, 5):
        needed = memory_needed(model, torch.bfloat16, work=Work(images=images))
        at_work = needed.cache + needed.activations
        assert at_once(at_work) >= images - 1
        assert at_once(at_work * 3 // 4) <= images
    assert at_once(0) == 1


def test_the_documented_totals_are_the_printed_ones(capsys: pytest.CaptureFixture) -> None:
    assert main(["memory"]) == 0
    title, table, free = capsys.readouterr().out.split("\n\n")
    assert len(table.splitlines()) == 14 and "Free on this machine: " in free and "MiniCPM" in title
    documented = DOCS.read_text(encoding="utf-8").splitlines()
    for row in table.splitlines()[2:]:
        language_model, aspects, _, weights, *_, total, gpu = (
            cell.strip() for cell in row.strip("|").split("|")
        )
        cells = next(line.split("|") for line in documented if line.startswith(f"{language_model}|"))
        assert (cells[1], cells[2 if aspects == "1" else 3]) == (weights, f"{total} ({gpu})")


# --- too little -------------------------------------------------------------------------------


def test_too_little_memory_is_reported_with_what_would_fit(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = (needed(base).total + needed(base, "8bit").total) // 2
    monkeypatch.setattr("m3agiqa.backbones.memory.room", lambda device: free)
    with pytest.raises(
        TooLittleMemory, match=r"needs 0\.\d GB .* With --quantize 8bit .* with 4bit 0\.\d GB"
    ):
        load_model(base, device="cpu")
    assert load_model(base, device="cpu", quantize="8bit")


def test_running_out_at_work_is_reported(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = MiniCPMBackbone.from_folder(base, device="cpu")

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(backbone.model.llm.model, "forward", fail)
    [request] = requests((300, 300), 1)
    told = Request(request.image, tuple(c.describe("sharp") for c in request.conversations))
    for work in (lambda: list(backbone.describe([request])), lambda: backbone.encode([told])):
        with pytest.raises(InputError, match=r"smaller image, .* --quantize 4bit"):
            work()
