"""A small data folder in the layout of the real one, drawn by code."""

import json
import shutil
from pathlib import Path
from random import Random

import pytest
from drawings import COLOURS, SHAPES, draw
from scripted_backbone import ScriptedBackbone
from tiny_nano import tiny_nano

from m3agiqa.backbones.loading import BACKBONE_CLASSES
from m3agiqa.backbones.nano import NanoBackbone
from training.nano import fit_prompt_alignment


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedBackbone]:
    """What is loaded as nano speaks by a script; its calls are counted anew."""
    monkeypatch.setitem(BACKBONE_CLASSES, "nano", ScriptedBackbone)
    monkeypatch.setattr(ScriptedBackbone, "asked", [])
    monkeypatch.setattr(ScriptedBackbone, "fails_at", None)
    return ScriptedBackbone


@pytest.fixture
def tiny_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """What learns is a tiny nano, with random weights."""
    monkeypatch.setattr(NanoBackbone, "from_base", classmethod(lambda cls, progress=None: tiny_nano()))


@pytest.fixture
def two_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are aligned with images in two folds instead of three, as each fit takes a second."""
    monkeypatch.setattr(fit_prompt_alignment, "N_FOLDS", 2)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """agi-teacher, agi-unlabelled, captions and published conversations, a few rows each."""
    root = tmp_path_factory.mktemp("data")
    for name in ("agi-teacher", "agi-unlabelled", "captions"):
        (root / name / "images").mkdir(parents=True)
    (root / "m3-agiqa-conversations").mkdir()
    rng = Random(0)
    teacher, unlabelled, captions = [], [], []
    for i in range(16):
        shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
        image = draw(shape, colour, 96, i)
        for name in ("agi-teacher", "agi-unlabelled", "captions"):
            image.save(root / name / "images" / f"{i}.png")
        prompt = f"a {colour} {shape} number {i}"
        score = round(rng.uniform(1, 5), 1)
        told = {"score": score, "description": f"A plain {colour} {shape} on grey."}
        teacher.append(
            {
                "id": f"t{i}",
                "image": f"images/{i}.png",
                "prompt": None if i == 5 else prompt,
                "generator": "pen",
                "source": "left" if i % 2 else "right",
                "split": "test" if i >= 12 else "validation" if i >= 8 else "train",
                "quality": told,
                "correspondence": None if i == 5 else told,
                "authenticity": told,
            }
        )
        if i % 2:
            continue
        unlabelled.append({"id": f"u{i}", "image": f"images/{i}.png", "prompt": prompt, "generator": "pen"})
        unlabelled[-1]["split"] = "train"
        captions.append({"image": f"images/{i}.png", "captions": [prompt, f"{prompt} on grey"]})
    rows = {
        "agi-teacher/samples": teacher,
        "agi-unlabelled/samples": unlabelled,
        "captions/captions": captions,
    }
    for name, lines in rows.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    turns = [
        {"role": "user", "content": "<image>\nWhat do you see?"},
        {"role": "assistant", "content": "A grey picture."},
        {"role": "user", "content": "One word, please."},
        {"role": "assistant", "content": "fair"},
    ]
    published = [{"id": str(i), "image": "x.png", "conversations": turns} for i in range(4)]
    (root / "m3-agiqa-conversations" / "set__train_quality.json").write_text(json.dumps(published))
    return root


@pytest.fixture(scope="session")
def nano_data(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nano is trained on: agi-teacher as in `data`, the same again as agi-native, and agiqa-3k."""
    root = tmp_path_factory.mktemp("nano-data")
    shutil.copytree(data / "agi-teacher", root / "agi-teacher")
    for name in ("agi-native", "agiqa-3k"):
        shutil.copytree(data / "agi-teacher" / "images", root / name / "images")
    rows = [json.loads(line) for line in (data / "agi-teacher" / "samples.jsonl").read_text().splitlines()]
    native, people, authenticity = [], [], []
    for i, row in enumerate(rows):
        native.append({**row, "id": f"n{i}", "source": "native"})
        judged = {"mos": row["quality"]["score"] - 0.5, "std": 0.4, "description": "Plain."}
        common = {"image": row["image"], "prompt": f"prompt {i}", "generator": "pen", "source": "agiqa-3k"}
        split = {"split": "validation" if row["split"] == "test" else row["split"]}
        people.append({"id": f"p{i}", **common, **split, "quality": judged, "correspondence": judged})
        from_people = {**common, "image": f"../agiqa-3k/{row['image']}"}
        authenticity.append({"id": f"g{i}", **from_people, **split, "authenticity": row["authenticity"]})
        authenticity.append(
            {**authenticity[-1], "distortion": "blur", "level": 1, "authenticity": {"score": 1.0}}
        )
    for name, lines in (
        ("agi-native/samples", native),
        ("agiqa-3k/samples", people),
        ("agi-native/agiqa-3k", authenticity[:10]),
    ):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root
