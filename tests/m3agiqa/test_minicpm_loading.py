"""MiniCPM from a folder or from the Hugging Face Hub, whole or with something missing."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub_server import NOBODY, Hub, reached, serving
from safetensors.torch import load_file, save_file
from tiny_minicpm import CONFIG, tiny_model, write_base

from m3agiqa.backbones.minicpm.base_weights import BASE_MODEL, FOLDER_VARIABLE, base_folder, base_version
from m3agiqa.backbones.minicpm.chat import load_tokenizer
from m3agiqa.backbones.minicpm.loading import check_transformers, load_model, read_slicing
from m3agiqa.errors import InputError, WeightsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


# --- folders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_weights_arrive_as_they_are(tmp_path: Path, shards: int) -> None:
    model = load_model(write_base(tmp_path, shards), device="cpu")
    expected = tiny_model()
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    embedded = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.llm(inputs_embeds=embedded).logits, expected.llm(inputs_embeds=embedded).logits)


@pytest.mark.parametrize(
    ("stored", "asked", "loaded"),
    [
        ("float32", None, torch.float32),
        ("float16", None, torch.bfloat16),  # on the CPU
        ("float16", torch.float16, torch.float16),
        ("float32", torch.bfloat16, torch.bfloat16),
    ],
)
def test_precision(folder: Path, stored: str, asked: torch.dtype | None, loaded: torch.dtype) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "torch_dtype": stored}))
    model = load_model(folder, device="cpu", dtype=asked)
    assert {parameter.dtype for parameter in model.parameters()} == {loaded}
    assert model.llm.model.rotary_emb.inv_freq.dtype == torch.float32


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rewritten(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


def configured(**facts: object) -> Callable[[Path], None]:
    return rewritten("config.json", json.dumps({**CONFIG, **facts}))


def reshaped(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return apply


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("config.json"), "config.json cannot be read"),
        (rewritten("config.json", "{"), "config.json is damaged"),
        (rewritten("config.json", "[]"), "config.json is damaged"),
        (configured(model_type="qwen2_5_vl"), "type qwen2_5_vl; MiniCPM-Llama3-V 2.5 is needed"),
        (configured(version="2.6"), "type minicpmv 2.6; MiniCPM-Llama3-V 2.5 is needed"),
        (without("model.safetensors"), "no weights"),
        (rewritten("model.safetensors", "nothing"), "model.safetensors is damaged"),
        (reshaped(lambda weights: weights.pop("resampler.query")), "lack resampler.query"),
        (
            reshaped(lambda weights: weights.update({"vpm.head.weight": torch.zeros(1)})),
            "hold what the model does not have: vpm.head.weight",
        ),
        (
            reshaped(lambda weights: weights.update({"resampler.query": torch.zeros(64, 64)})),
            r"resampler.query has the shape \(64, 64\), and \(96, 64\) is needed",
        ),
        (configured(hidden_size="many"), "config.json is damaged"),
        (configured(vision_config=None), "has no vision_config"),
    ],
)
def test_what_is_wrong_with_a_folder_is_reported(folder: Path, damage: Callable, said: str) -> None:
    damage(folder)
    with pytest.raises(WeightsError, match=said):
        load_model(folder, device="cpu")


def test_missing_shards_are_named(tmp_path: Path) -> None:
    folder = write_base(tmp_path, 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"1 of 3 weight files are missing in .*: model-00002-of-00003"):
        load_model(folder, device="cpu")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"index\.json is damaged"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("tokenizer.json"), "has no tokenizer.json"),
        (rewritten("tokenizer.json", "{}"), "tokenizer.json cannot be read"),
        (
            lambda folder: (folder / "tokenizer.json").write_text(
                (folder / "tokenizer.json").read_text().replace('"<slice>"', '"<piece>"')
            ),
            "does not know <slice>",
        ),
    ],
)
def test_what_is_wrong_with_a_tokenizer_is_reported(folder: Path, damage: Callable, said: str) -> None:
    damage(folder)
    with pytest.raises(WeightsError, match=said):
        load_tokenizer(folder)


def test_settings_of_slices_are_read(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    assert read_slicing(folder).max_slice_nums == 9
    path.write_text('{"max_slice_nums": 4, "norm_mean": [0, 0.5, 1], "image_feature_size": 96}')
    read = read_slicing(folder)
    assert (read.max_slice_nums, read.scale_resolution, read.norm_mean) == (4, 448, (0.0, 0.5, 1.0))
    path.write_text('{"norm_mean": 0.5}')
    with pytest.raises(WeightsError, match=r"preprocessor_config\.json is damaged"):
        read_slicing(folder)


def test_an_old_library_is_named() -> None:
    check_transformers("5.20.1")
    with pytest.raises(WeightsError, match=r"5\.20 or newer, and 4\.57\.1 is installed"):
        check_transformers("4.57.1")


def test_too_little_memory_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("m3agiqa.backbones.minicpm.loading.MiniCPMV.from_pretrained", fail)
    with pytest.raises(WeightsError, match=r"memory ran out while MiniCPM-Llama3-V 2\.5 was loaded"):
        load_model(folder, device="cpu")


# --- the Hub ----------------------------------------------------------------------------------


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """With the base, which has a tag."""
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    with serving() as hub:
        hub.publish(BASE_MODEL, folder, "v1")
        reached(monkeypatch, hub.url, tmp_path / "cache")
        yield hub


def test_what_was_downloaded_is_there_without_a_network(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "modeling_minicpmv.py").write_text("raise SystemExit")
    got = base_folder(revision="v1")
    assert {path.name for path in got.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    reached(monkeypatch, NOBODY, tmp_path / "cache")
    assert base_folder(revision="v1") == got
    assert load_model(got, device="cpu").config.hidden_size == 64


def test_a_folder_of_ones_own_comes_first(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    assert base_folder() == folder and not hub.asked
    own = base_version()
    with pytest.raises(InputError, match=f"taken from the folder {folder} .*{FOLDER_VARIABLE}"):
        base_version("v1")
    (folder / "notes.txt").write_text("no part of the model")
    assert base_version() == own
    weights = load_file(folder / "model.safetensors")
    weights["resampler.query"][0, 0] += 1
    save_file(weights, folder / "model.safetensors")
    assert base_version() != own
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder / "none"))
    with pytest.raises(WeightsError, match=f"{FOLDER_VARIABLE} names .*none, which is no folder"):
        base_folder()
