"""All stages of the training pipeline with a tiny MiniCPM."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from tiny_minicpm import write_base

from m3agiqa import Aspect, Assessor
from m3agiqa.backbones.minicpm import backbone as backbone_module
from m3agiqa.backbones.minicpm.backbone import VISION_ADAPTER_FOLDER, MiniCPMBackbone
from m3agiqa.backbones.minicpm.base_weights import FOLDER_VARIABLE, CheckpointBase, base_version
from m3agiqa.samples import Sample, write_samples
from training.__main__ import main

ASPECTS = (Aspect.QUALITY, Aspect.CORRESPONDENCE)
TOLD = {Aspect.QUALITY: "It is plain and sharp.", Aspect.CORRESPONDENCE: "It fits its prompt."}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_base(tmp_path / "base")
    (folder / "preprocessor_config.json").write_text(json.dumps({"scale_resolution": 56}))
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    monkeypatch.setattr(backbone_module, "MAX_NEW_TOKENS", 6)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return folder


@pytest.mark.parametrize("apart", [False, True])
def test_from_samples_to_an_assessor(base: Path, tmp_path: Path, apart: bool) -> None:
    """With one vision adapter for all aspects, and with one each."""
    samples, rng = [], Random(0)
    for number in range(18):
        image = tmp_path / f"{number}.png"
        Image.new("RGB", (64, 48), tuple(rng.randrange(256) for _ in range(3))).save(image)
        mos = {aspect: round(rng.uniform(1, 5), 1) for aspect in ASPECTS}
        samples.append(Sample(f"s{number}", image, f"number {number}", mos, TOLD))
    write_samples(samples, tmp_path / "samples.jsonl")
    split = {"by": "image", "ratios": [4, 1, 1]}
    settings = {
        "backbone": "minicpm",
        "start": None,
        "data": {
            "format": "samples",
            "path": str(tmp_path / "samples.jsonl"),
            "scale": [1, 5],
            "split": split,
        },
        "finetune": {"tune": ["vision"], "aspects": list(map(str, ASPECTS)) if apart else [], "rank": 2},
        "encode": True,
        "fit": {"extractor": "none", "dim": 8, "epochs": 2},
    }
    settings["finetune"] |= {"mixed_precision": "no", "adapter_lr": 0.05}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    run = tmp_path / "run"
    assert main(["run", str(tmp_path / "tiny.yaml"), "--run", str(run)]) == 0

    folders = [run / "finetune" / aspect for aspect in ASPECTS] if apart else [run / "finetune"]
    for folder in folders:
        learned = load_file(folder / VISION_ADAPTER_FOLDER / "adapter_model.safetensors")
        assert learned and all(".lora_" in name for name in learned)
        assert any(value.any() for name, value in learned.items() if ".lora_B" in name)
    assert CheckpointBase.read(run / "checkpoint").version == base_version()
    assessor = Assessor.from_pretrained(run / "checkpoint")
    assert isinstance(assessor.backbone, MiniCPMBackbone), "one language model, whatever the aspects see with"
    assert bool(assessor.backbone.vision_towers) == apart
    found = assessor.assess(samples[0].image, samples[0].prompt, ASPECTS)
    assert set(found.aspects) == set(ASPECTS)
    assert all(torch.tensor(each.mos).isfinite() for each in found.aspects.values())
