"""Fine-tuning: only what is named learns, and neither a kill, nor more processes, nor gradient
checkpointing changes what is learned."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from forked_training import start
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_backbone import TinyBackbone, tiny_batches
from torch import Tensor
from waiting import kill_once

from m3agiqa import Aspect
from m3agiqa.conversation import Conversation, Turn
from m3agiqa.errors import InputError
from training.stages.curriculum import Lesson
from training.stages.finetune import FinetuneConfig, _accelerator, about, finetune, rate, teach

ROOT = Path(__file__).parents[2]
LAUNCHES = ROOT / "training" / "configs" / "accelerate"
EVERYTHING = FinetuneConfig(
    tune=("vision", "bridge", "language"),
    rank=2,
    adapter_lr=0.03,
    full_lr=0.03,
    mixed_precision="no",
    save_every=1,
)


@pytest.fixture(autouse=True)
def own_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate keeps its settings for as long as the process runs; each test has its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def taught(folder: Path, config: FinetuneConfig, batches: list[list[Lesson]] | None = None) -> Path:
    """The output of a run in this process."""
    out = folder / "out"
    images = folder / "out-images"
    teach(
        lambda: TinyBackbone.for_training(None), batches or tiny_batches(images), out, config, out / "state"
    )
    return out


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def learned(out: Path) -> dict[str, Tensor]:
    """In 32 bit, from the last state."""
    files = sorted((out / "state").glob("*.safetensors"))
    return {f"{file.stem} {name}": value for file in files for name, value in load_file(file).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def exported(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*.safetensors")} - {
        path.relative_to(out).as_posix() for path in (out / "state").rglob("*")
    }


# --- what learns -----------------------------------------------------------------------------


def test_everything_that_is_tuned_learns(tmp_path: Path) -> None:
    batches = tiny_batches(tmp_path / "images") * 4
    out = taught(tmp_path, EVERYTHING, batches)
    found = losses(out)
    assert found[-1] < 0.5 * found[0]
    start = TinyBackbone.for_training(None).bridge.state_dict()
    for name, value in learned(out).items():
        kind, tensor = name.split(" ")
        assert value.dtype == torch.float32
        if kind == "bridge":
            assert torch.equal(value, start[tensor]) == (tensor == "fitted")
        elif "lora_B" in tensor:
            assert value.any(), f"{name} has not moved from 0"


def test_by_default_the_vision_encoder_alone_learns(tmp_path: Path) -> None:
    out = taught(tmp_path, FinetuneConfig(rank=2, mixed_precision="no"))
    assert exported(out) == {"eye-adapter/adapter_model.safetensors", "bridge.safetensors"}
    texts = 1  # a batch of them, from which a vision encoder learns nothing
    assert len(losses(out)) == len(tiny_batches(tmp_path / "images")) - texts
    assert any(value.any() for name, value in learned(out).items() if "lora_B" in name)
    kept = load_file(out / "bridge.safetensors")
    start = TinyBackbone.for_training(None).bridge.state_dict()
    for name, value in kept.items():
        assert torch.equal(value, start[name] if name == "fitted" else start[name].bfloat16())
    settings = json.loads((out / "eye-adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "eye.pth"


def test_base_weights_and_statistics_stay(tmp_path: Path) -> None:
    backbone = TinyBackbone.for_training(None)
    before = {name: value.clone() for name, value in backbone.eye.state_dict().items()}
    head = backbone.head.clone()
    out = tmp_path / "out"
    teach(lambda: backbone, tiny_batches(tmp_path / "images"), out, EVERYTHING, out / "state")
    after = {name.replace(".base_layer", ""): value for name, value in backbone.eye.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(backbone.head, head)


def test_a_part_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tiny has no part ears to tune\. Its parts are vision, bridge"):
        taught(tmp_path, FinetuneConfig(tune=("ears",), mixed_precision="no"))


def test_texts_alone_teach_a_vision_encoder_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to fine-tune vision with"):
        taught(tmp_path, FinetuneConfig(mixed_precision="no"), [said("ab")])


@pytest.mark.parametrize("precision", ["fp16", "fp17"])
def test_a_precision_that_does_not_work_here_is_named(tmp_path: Path, precision: str) -> None:
    with pytest.raises(InputError, match=f"mixed_precision .{precision}."):
        taught(tmp_path, FinetuneConfig(mixed_precision=precision))


@pytest.mark.parametrize(("is_fast", "expected"), [(True, "bf16"), (False, "no")])
def test_16_bit_is_left_out_where_the_processor_is_slow_at_it(
    is_fast: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.stages.finetune.has_fast_bfloat16", lambda: is_fast)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert _accelerator(FinetuneConfig(mixed_precision="bf16")).mixed_precision == expected
    AcceleratorState._reset_state(reset_partial_state=True)


@given(steps=st.integers(1, 5000), warmup=st.floats(0, 0.5), final=st.floats(0, 1))
def test_the_rate_rises_to_one_and_falls_to_what_is_left(steps: int, warmup: float, final: float) -> None:
    config = FinetuneConfig(warmup=warmup, final_rate=final)
    found = [rate(step, steps, config) for step in range(steps)]
    top = max(0, round(warmup * steps) - 1)
    assert found[top] == 1
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert all(value >= final - 1e-9 for value in found[top:])
    assert rate(steps, steps, config) == pytest.approx(final) or steps == 1


# --- how it is run ---------------------------------------------------------------------------


def test_two_processes_learn_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told of each other as by `accelerate launch` and torchrun."""
    one, two = taught(tmp_path / "one", EVERYTHING), tmp_path / "two" / "out"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "OMP_NUM_THREADS": 1}
    processes = []
    for rank in range(2):
        for name, value in {**launch, "RANK": rank, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, str(value))
        processes.append(start(taught, tmp_path / "two", EVERYTHING))
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    assert losses(two) == pytest.approx(losses(one), rel=1e-4), "each step once: only one process writes"
    alone, together = learned(one), learned(two)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=1e-3, rtol=1e-2, msg=name)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    config = replace(EVERYTHING, dropout=0.2)
    whole = taught(tmp_path / "whole", config)
    out = tmp_path / "killed" / "out"
    process = start(taught, tmp_path / "killed", config)
    kill_once(process, lambda: (out / "log.jsonl").exists() and len(losses(out)) >= 3)
    assert not (out / "finetune.json").exists()
    before = len(losses(out))
    assert before < len(losses(whole))
    taught(tmp_path / "killed", config)
    assert len(losses(out)) <= len(losses(whole)) + 1, "at most the step that was not saved is repeated"
    assert losses(out)[-1] == pytest.approx(losses(whole)[-1], rel=1e-5)
    expected = learned(whole)
    for name, value in learned(out).items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    config = replace(EVERYTHING, dropout=0.2)
    usual = taught(tmp_path / "usual", config)
    lean = taught(tmp_path / "lean", replace(config, gradient_checkpointing=True))
    assert losses(lean) == pytest.approx(losses(usual), rel=1e-5)


def said(*texts: str) -> list[Lesson]:
    """Lessons of text alone, all with as many tokens."""
    return [
        Lesson(None, (Conversation(Aspect.QUALITY, (Turn("user", "?"), Turn("assistant", text))),))
        for text in texts
    ]


def test_accumulated_batches_count_as_one(tmp_path: Path) -> None:
    config = replace(EVERYTHING, tune=("language",))
    parts = [said("ab"), said("cd"), said("ef"), said("gh"), said("ij")]
    wholes = [said("ab", "cd"), said("ef", "gh"), said("ij")]
    accumulated = taught(tmp_path / "parts", replace(config, gradient_accumulation=2), parts)
    at_once = taught(tmp_path / "wholes", config, wholes)
    assert losses(accumulated) == pytest.approx(losses(at_once), rel=1e-5)
    expected = learned(at_once)
    for name, value in learned(accumulated).items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("path", sorted(LAUNCHES.glob("*.yaml")), ids=lambda path: path.stem)
def test_launch_settings_are_what_accelerate_expects(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.distributed_type.value == {
        "many_gpus": "MULTI_GPU",
        "deepspeed_zero3_offload": "DEEPSPEED",
    }.get(path.stem, "NO")
    assert config.use_cpu is (path.stem == "cpu")
    assert (config.num_processes > 1) is (config.distributed_type.value != "NO")


def test_deepspeed_splits_everything_and_keeps_it_in_main_memory() -> None:
    launch = load_config_from_file(str(LAUNCHES / "deepspeed_zero3_offload.yaml"))
    settings = HfDeepSpeedConfig(str(ROOT / launch.deepspeed_config["deepspeed_config_file"]))
    assert settings.is_zero3() and settings.is_offload()
    assert settings.get_value("zero_optimization.stage3_gather_16bit_weights_on_model_save") is True
    assert settings.get_value("train_micro_batch_size_per_gpu") == 1, "there is no loader to read it from"


# --- learning on --------------------------------------------------------------------------------


def test_adapters_of_a_checkpoint_learn_on_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3agiqa.backbones.loading.BACKBONE_CLASSES", {"tiny": TinyBackbone})
    batches, first, second = tiny_batches(tmp_path / "images"), tmp_path / "first", tmp_path / "second"
    finetune(batches, None, first, replace(EVERYTHING, save_every=50), "tiny")
    finetune(batches, first, second, replace(EVERYTHING, tune=("language",), save_every=50), "tiny")
    assert losses(second)[0] < losses(first)[0], "it begins where the first has ended"
    assert exported(second) == exported(first)
    kept = {name for name in exported(first) if same(load_file(first / name), load_file(second / name))}
    assert kept == exported(first) - {"adapter/adapter_model.safetensors"}


# --- one adapter for each aspect ---------------------------------------------------------------


def test_an_adapter_for_each_aspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3agiqa.backbones.loading.BACKBONE_CLASSES", {"tiny": TinyBackbone})
    batches, out = tiny_batches(tmp_path / "images"), tmp_path / "out"
    chosen = (Aspect.QUALITY, Aspect.CORRESPONDENCE)
    config = replace(EVERYTHING, aspects=chosen, save_every=50)
    finetune(batches, None, out, config, "tiny")
    assert (out / "finetune.json").exists()
    adapters = [load_file(out / aspect / "adapter" / "adapter_model.safetensors") for aspect in chosen]
    assert adapters[0].keys() == adapters[1].keys()
    assert any(not torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    before = losses(out / Aspect.QUALITY)
    finetune(batches, None, out, config, "tiny")
    assert losses(out / Aspect.QUALITY) == before, "what is done is not done again"
    with pytest.raises(InputError, match="authenticity"):
        finetune(batches, None, out, replace(config, aspects=(Aspect.AUTHENTICITY,)), "tiny")


def test_lessons_about_an_aspect_keep_the_captions() -> None:
    caption = Lesson(None, (Conversation(None, (Turn("user", "?"), Turn("assistant", "a ball"))),))
    both = Lesson(None, tuple(Conversation.open(a, "a ball").describe("x") for a in list(Aspect)[:2]))
    other = Lesson(None, (Conversation.open(Aspect.CORRESPONDENCE, "a ball").describe("y"),))
    (first, second) = about([[caption], [both, other], [other]], Aspect.QUALITY)
    assert first == [caption]
    assert [c.aspect for lesson in second for c in lesson.conversations] == [Aspect.QUALITY]
