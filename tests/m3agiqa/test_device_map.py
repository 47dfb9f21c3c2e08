"""Where the weights of a model go, and what is said where they do not fit."""

from pathlib import Path

import psutil
import pytest
import torch
from accelerate import cpu_offload
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from m3agiqa import InputError
from m3agiqa.backbones import memory
from m3agiqa.backbones.devices import check_placement, main_device
from m3agiqa.backbones.memory import (
    enough_for_work,
    enough_to_load,
    fitting,
    group_rooms,
    layers_of,
    outside,
    room,
    spread,
    too_little,
)
from m3agiqa.backbones.per_aspect import sharing_copy
from m3agiqa.backbones.placement import Placement
from m3agiqa.errors import TooLittleMemory

GB = 10**9


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(6))
        self.register_buffer("scale", torch.ones(1))


class Model(nn.Module):
    """40 weights a layer; beside these, 85 in modules and by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = nn.Linear(4, 4, bias=False)
        self.decoder = Decoder()
        self.head = nn.Linear(4, 8, bias=False)
        self.newline = nn.Parameter(torch.ones(4))


# --- devices ----------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("asked", "meant"),
    [(None, "cuda:1"), ("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
def test_devices(asked: str | None, meant: str) -> None:
    assert main_device(asked) == torch.device(meant)


@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_is_not_there_is_reported() -> None:
    with pytest.raises(InputError, match="no cuda:2 on this machine, only cuda:0 to cuda:1"):
        main_device("cuda:2")


def test_devices_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {main_device(asked) for asked in (None, "auto", "cpu")} == {torch.device("cpu")}
    with pytest.raises(InputError, match="finds no GPU on this machine, so cuda:1 cannot be used"):
        main_device("cuda:1")


@pytest.mark.parametrize("asked", ["tpu", "cuda:", "cuda:x", "", "cpu:0", "cuda:-1"])
def test_unknown_devices_are_reported(asked: str) -> None:
    with pytest.raises(InputError, match="There is no device"):
        main_device(asked)


def test_unknown_precisions_are_reported() -> None:
    with pytest.raises(InputError, match="cannot be quantized to '3bit'"):
        check_placement(Placement("cpu", "3bit"))


# --- spreading --------------------------------------------------------------------------------


def test_what_has_nothing_of_some_parts() -> None:
    model = Model()
    assert outside(model, {model.decoder}) == ["newline", "vision", "head"]
    assert outside(model, set(model.decoder.layers)) == [
        "newline",
        "vision",
        "decoder.scale",
        "decoder.embed",
        "head",
    ]
    assert layers_of(model.decoder) is model.decoder.layers


@given(
    first=st.integers(0, 2800),
    second=st.integers(0, 1600),
    waiting=st.one_of(st.none(), st.integers(0, 1600)),
)
def test_layers_fill_the_places_in_order_and_are_never_cut(
    first: int, second: int, waiting: int | None
) -> None:
    model = Model()
    rooms = {0: first, 1: second} | ({} if waiting is None else {"cpu": waiting})
    places = spread(model, model.decoder, torch.float32, None, rooms)
    layer, rest = 4 * 40, 4 * (4 + 16 + 1 + 32 + 32)
    most = [max(room, 0) // layer for room in (first - rest, second, waiting or 0)]
    if places is None:
        # A layer must be free on the first GPU, and in the CPU's memory, where the layers go on elsewhere.
        assert most[0] < 1 or max(most[0] - 1, 0) + most[1] + max(most[2] - 1, 0) < 6
        return
    taken = [places.pop(f"decoder.layers.{i}") for i in range(6)]
    assert taken == sorted(taken, key=list(rooms).index)
    assert all(taken.count(place) <= count for place, count in zip((0, 1, "cpu"), most, strict=True))
    assert most[0] >= 1 and (taken[-1] == 0 or taken.count(0) < most[0])
    assert set(places.values()) == {0}
    assert set(places) == set(outside(model, set(model.decoder.layers)))


# --- what fits --------------------------------------------------------------------------------


def fit(placement: Placement, work: int = 0) -> dict[str, object]:
    model = Model()
    return fitting("Tiny", model, model.decoder, torch.float16, placement, work)


def has(monkeypatch: pytest.MonkeyPatch, **rooms: int) -> None:
    free = {name.replace("_", ":"): count for name, count in rooms.items()}
    monkeypatch.setattr(memory, "room", lambda device: free[str(device)])


@pytest.mark.usefixtures("gpus")
def test_a_model_goes_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, cuda_0=100_000, cuda_1=100_000, cpu=100_000)
    assert fit(Placement())["device_map"] == {"": torch.device("cuda:1")}
    assert fit(Placement("cpu"))["device_map"] == {"": torch.device("cpu")}
    options = fit(Placement("cuda:0", "4bit"))
    kept = options["quantization_config"].llm_int8_skip_modules
    assert set(kept) == {"newline", "vision", "head"} and "quantization_config" not in fit(Placement())


@pytest.mark.usefixtures("gpus")
def test_auto_spreads_a_model_that_one_gpu_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, cuda_0=450, cuda_1=200, cpu=400)
    with pytest.raises(TooLittleMemory, match=r"are free on cuda:0[.] With --device auto"):
        fit(Placement("cuda:0"), work=100)
    places = fit(Placement("auto"), work=100)["device_map"]
    assert {places[f"decoder.layers.{i}"] for i in range(6)} == {0, 1, "cpu"}
    with pytest.raises(TooLittleMemory, match=r"on cuda:0 and .* on cuda:1 and .* in this machine's memory"):
        fit(Placement("auto"), work=500)


@pytest.mark.parametrize(
    ("asked", "rooms", "said"),
    [
        (
            None,
            {"cuda:0": 15.8},
            "It needs 19.3 GB of memory, and 15.8 GB are free on cuda:0. With --quantize 8bit (in the app, "
            "M3AGIQA_QUANTIZE=8bit) it needs 11.2 GB, with 4bit 7.9 GB.",
        ),
        (
            None,
            {"cuda:0": 8.2},
            "It needs 19.3 GB of memory, and 8.2 GB are free on cuda:0. With --quantize 4bit (in the app, "
            "M3AGIQA_QUANTIZE=4bit) it needs 7.9 GB.",
        ),
        (
            None,
            {"cuda:0": 5.0},
            "It needs 19.3 GB of memory, and 5.0 GB are free on cuda:0. Even with --quantize 4bit (in "
            "the app, M3AGIQA_QUANTIZE=4bit) it needs 7.9 GB. Close what else takes memory, or use a GPU "
            "with 12 GB or more.",
        ),
        (
            "8bit",
            {"cpu": 6.0},
            "It needs 11.2 GB of memory, and 6.0 GB are free in this machine's memory. Even with --quantize "
            "4bit (in the app, M3AGIQA_QUANTIZE=4bit) it needs 7.9 GB. Close what else takes memory, or use "
            "a machine with 16 GB or more.",
        ),
        (
            "4bit",
            {"cuda:0": 6.0, "cuda:1": 1.0},
            "It needs 7.9 GB of memory, and 6.0 GB are free on cuda:0 and 1.0 GB are free on cuda:1. Close "
            "what else takes memory, or use a GPU with 12 GB or more.",
        ),
    ],
    ids=["two-fit", "one-fits", "none-fits", "cpu", "smallest"],
)
def test_what_would_fit_is_reported(asked: str | None, rooms: dict[str, float], said: str) -> None:
    needs = {None: int(19.3 * GB), "8bit": int(11.2 * GB), "4bit": int(7.9 * GB)}
    error = too_little("It", needs, asked, {device: int(free * GB) for device, free in rooms.items()})
    assert str(error) == said


def test_running_out_of_memory_is_distinguished_from_other_errors() -> None:
    full = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    for error in (full, torch.OutOfMemoryError(), MemoryError()):
        with pytest.raises(TooLittleMemory, match="ran out while Tiny was loaded"), enough_to_load("Tiny"):
            raise error
        with pytest.raises(InputError, match="ran out while the model was at work"), enough_for_work():
            raise error
    with pytest.raises(RuntimeError, match="mat1"), enough_for_work(), enough_to_load("Tiny"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


# --- what is free -----------------------------------------------------------------------------


def test_no_more_is_free_than_there_is() -> None:
    assert 0 < room("cpu") <= psutil.virtual_memory().total


def written(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_limits_of_containers(tmp_path: Path) -> None:
    groups, own = tmp_path / "groups", tmp_path / "own"
    assert group_rooms(groups, own) == []
    own.write_text("0::/pod/app\n")
    stat = "anon 40\ninactive_file 30"
    written(groups, memory__max="max", memory__current="900", memory__stat=stat)
    assert group_rooms(groups, own) == []
    written(groups / "pod", memory__max="1000", memory__current="500", memory__stat=stat)
    written(groups / "pod" / "app", memory__max="200", memory__current="240", memory__stat=stat)
    assert group_rooms(groups, own) == [0, 530]
    own.write_text("5:cpu,memory:/on/the/host\n1:name=systemd:/\n")
    old = {"memory__usage_in_bytes": "100", "memory__stat": "total_inactive_file 20"}
    written(groups / "memory", memory__limit_in_bytes="300", **old)
    assert group_rooms(groups, own) == [220]


# --- sharing ----------------------------------------------------------------------------------


def test_copies_share_weights_that_wait_elsewhere() -> None:
    layer = nn.Linear(4, 4)
    expected = layer(torch.ones(1, 4))
    cpu_offload(layer, execution_device=torch.device("cpu"))
    copy = sharing_copy(layer)
    assert torch.equal(copy(torch.ones(1, 4)), expected) and copy.weight.is_meta
    hooks = (each._hf_hook.hooks[-1] for each in (layer, copy))
    first, second = (hook.weights_map["weight"].data_ptr() for hook in hooks)
    assert first == second
