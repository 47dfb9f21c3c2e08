"""The benchmark of the paper's model compares two ways that compute the same."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from m3agiqa import Aspect
from m3agiqa.backbones.minicpm import backbone as backbone_module
from m3agiqa.backbones.minicpm.model import MiniCPMVConfig
from m3agiqa.backbones.minicpm.slicing import Slicing

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TOKENS = 6
CONFIG = {
    "vocab_size": 2000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
    "query_num": 8,
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 980,
        "patch_size": 14,
        "initializer_range": 0.2,
    },
}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(backbone_module, "MAX_NEW_TOKENS", TOKENS)  # the benchmark sets it for good
    import minicpm

    yield minicpm
    for name in ("minicpm", "random_minicpm"):
        del sys.modules[name]


@pytest.mark.parametrize(("adapters", "beams"), [(False, 3), (True, 1)])
def test_both_ways_give_the_same_scores(benchmark: ModuleType, adapters: bool, beams: int) -> None:
    noise = torch.randint(0, 256, (90, 180, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    setting = benchmark.Setting(TOKENS, 1, beams, adapters, "cpu", torch.float32)
    report = benchmark.compare(
        MiniCPMVConfig(**CONFIG), Slicing(scale_resolution=112), Image.fromarray(noise.numpy()), setting
    )
    rows = dict(re.findall(r"^(\w.*?)  +(.*)$", report, re.MULTILINE))
    values = {name: [float(value) for value in row.split()] for name, row in rows.items()}
    for aspect in Aspect:
        here, published = values[f"MOS, {aspect}"]
        assert here == pytest.approx(published, abs=1e-3)
    assert len({values[f"MOS, {aspect}"][0] for aspect in Aspect}) == 3
    for name in ("seconds, three aspects", "tokens a second", "peak memory, GB"):
        here, published, ratio = values[name]
        assert here > 0 and published > 0 and ratio > 0
    tokens, seconds = values["tokens a second"], values["seconds, three aspects"]
    assert tokens[0] * seconds[0] == pytest.approx(len(Aspect) * TOKENS, rel=0.05)
