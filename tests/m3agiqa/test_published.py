"""The paper's own model by its name: five repositories of a stand-in Hub, with a tiny base, become one."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hub_server import NOBODY, Hub, reached, serving
from lightning_checkpoint import Surprise, Theirs, lightning_file
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_minicpm import CONFIG, published_adapter, write_base

from m3agiqa import Aspect, Assessor, InputError, MosScale, WeightsError, cli
from m3agiqa.backbones.base import BASE_FILE, Request
from m3agiqa.backbones.minicpm import backbone as backbone_module
from m3agiqa.backbones.minicpm import loading
from m3agiqa.backbones.minicpm.backbone import MiniCPMBackbone
from m3agiqa.backbones.minicpm.base_weights import BASE_MODEL, FOLDER_VARIABLE, CheckpointBase
from m3agiqa.checkpoint.card import CARD_FILE, read_card
from m3agiqa.checkpoint.published import M3_AGIQA, SOURCES_FILE, assembled
from m3agiqa.checkpoint.resolve import checkpoint_named
from m3agiqa.conversation import Conversation
from m3agiqa.download.hub import FOLDER_VARIABLE as HUB_FOLDER_VARIABLE
from m3agiqa.errors import TooLittleMemory

PROMPT = "a wide cat"
TOKENS = 14
LENGTHS = {Aspect.QUALITY: 768, Aspect.CORRESPONDENCE: 512, Aspect.AUTHENTICITY: 512}
ADAPTERS = {aspect: each.adapter for aspect, each in M3_AGIQA.aspects.items()}


@dataclass
class Parts:
    """What is published."""

    hub: Hub
    predictors: dict[Aspect, Theirs]
    image: Image.Image
    cache: Path
    """Where a first start has kept all of it."""
    home: Path
    assessor: Assessor
    told: list[str]
    """What that start has said it does."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """Everything on the Hub under the tag v1, and the model loaded once."""
    root = tmp_path_factory.mktemp("published")
    predictors = {}
    with serving() as hub, pytest.MonkeyPatch.context() as monkeypatch:
        base = write_base(root / BASE_MODEL, shards=2)
        (base / "preprocessor_config.json").write_text(json.dumps({"scale_resolution": 112}))
        hub.publish(BASE_MODEL, base, "v1")
        for seed, (aspect, each) in enumerate(M3_AGIQA.aspects.items()):
            published_adapter(root / each.adapter, seed)
            hub.publish(each.adapter, root / each.adapter, "v1")
            predictors[aspect] = Theirs(CONFIG["vocab_size"], LENGTHS[aspect], seed)
            file = root / M3_AGIQA.predictors / each.predictor
            lightning_file(predictors[aspect], file, mask=768 if aspect is Aspect.QUALITY else None)
        hub.publish(M3_AGIQA.predictors, root / M3_AGIQA.predictors, "v1")
        noise = torch.randint(0, 256, (300, 300, 3), generator=torch.Generator().manual_seed(5))
        image = Image.fromarray(noise.to(torch.uint8).numpy())
        reached(monkeypatch, hub.url, root / "cache")
        monkeypatch.setenv("M3AGIQA_HOME", str(root / "home"))
        monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
        monkeypatch.delenv(HUB_FOLDER_VARIABLE, raising=False)
        told: list[str] = []
        assessor = Assessor.from_pretrained("m3-agiqa", lambda message, done: told.append(message))
        yield Parts(hub, predictors, image, root / "cache", root / "home", assessor, told)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_module, "MAX_NEW_TOKENS", TOKENS)


@pytest.fixture
def afresh(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Nothing is on this machine yet, and what is published may be changed."""
    reached(monkeypatch, parts.hub.url, tmp_path / "cache")
    monkeypatch.setenv("M3AGIQA_HOME", str(tmp_path / "home"))
    commits = {name: dict(folders) for name, folders in parts.hub.commits.items()}
    monkeypatch.setattr(parts.hub, "commits", commits)
    monkeypatch.setattr(parts.hub, "names", {name: dict(names) for name, names in parts.hub.names.items()})
    monkeypatch.setattr(parts.hub, "asked", [])
    return parts


def changed(parts: Parts, repository: str, folder: Path) -> Path:
    """A copy of the newest commit of a repository, to be changed; it is published from now on."""
    shutil.copytree(parts.hub.commits[repository][parts.hub.names[repository]["main"]], folder)
    parts.hub.publish(repository, folder)
    return folder


# --- one model of five repositories -----------------------------------------------------------


def test_three_aspects_are_judged_as_their_parts_would(parts: Parts) -> None:
    """Descriptions, and scores as from logits of the whole vocabulary."""
    assessment = parts.assessor.assess(parts.image, PROMPT)
    assert list(assessment.aspects) == list(Aspect)
    for aspect, result in assessment.aspects.items():
        assert result.description and result.scale == MosScale(0, 5)
        told = Conversation.open(aspect, PROMPT).describe(result.description)
        (states,) = parts.assessor.backbone.encode([Request(parts.image, (told,))])
        assert len(states) > LENGTHS[aspect], "the end is cut off, as in their program"
        logits = states[None, : LENGTHS[aspect]] @ parts.assessor.backbone.head.T
        assert result.raw_mos == pytest.approx(parts.predictors[aspect](logits).item(), abs=1e-4)
        assert parts.assessor.card.predictors[aspect].projection == "hidden"
    assert len({result.raw_mos for result in assessment.aspects.values()}) == 3
    assert assessment.model.startswith("m3-agiqa 1.0+")
    assert assessment.learned_from.startswith("people's scores")
    assert all(each.dataset in assessment.learned_from for each in M3_AGIQA.aspects.values())


def test_the_base_is_in_memory_once(parts: Parts) -> None:
    backbones = parts.assessor.backbone.backbones
    assert list(backbones) == list(Aspect)
    first, *others = (dict(backbone.model.named_parameters()) for backbone in backbones.values())
    for name, tensor in first.items():
        adapted = ".lora_" in name or name.startswith(("vpm.", "resampler."))
        shared = [tensor.data_ptr() == other[name].data_ptr() for other in others]
        assert shared == [not adapted] * 2, name


def test_each_aspect_sees_as_many_slices_as_in_its_training(parts: Parts) -> None:
    slicings = {aspect: each.slicing for aspect, each in parts.assessor.backbone.backbones.items()}
    assert {aspect: slicing.max_slice_nums for aspect, slicing in slicings.items()} == {
        Aspect.QUALITY: 4,
        Aspect.CORRESPONDENCE: 9,
        Aspect.AUTHENTICITY: 9,
    }
    asked = [Conversation.open(aspect, PROMPT).describe("") for aspect in Aspect]
    quality, *others = parts.assessor.backbone.encode([Request(parts.image, tuple(asked))])
    assert all(len(other) > len(quality) + 2 * 96 for other in others)


def test_what_is_downloaded_is_reported_and_stays_where_it_is(parts: Parts) -> None:
    for name in M3_AGIQA.repositories:
        assert any(message.startswith(f"Downloading {name} (") for message in parts.told), name
    assert [message for message in dict.fromkeys(parts.told) if message.startswith("Fusing")] == [
        f"Fusing the predictor of {aspect}" for aspect in Aspect
    ]
    (folder,) = (parts.home / "published").iterdir()
    kept = {path.name for path in folder.iterdir()}
    assert kept == {CARD_FILE, BASE_FILE, SOURCES_FILE, "sha256.json"} | {
        f"predictor-{aspect}.safetensors" for aspect in Aspect
    }
    sources = json.loads((folder / SOURCES_FILE).read_text())["repositories"]
    assert sources == {name: parts.hub.names[name]["main"] for name in M3_AGIQA.repositories}
    made_of = CheckpointBase.read(folder)
    assert made_of.commit == sources[BASE_MODEL]
    assert {a: (each.repository, each.version) for a, each in made_of.adapters.items()} == {
        aspect: (name, sources[name]) for aspect, name in ADAPTERS.items()
    }


def test_later_starts_need_no_network(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    reached(monkeypatch, NOBODY, parts.cache)
    assert read_card(checkpoint_named("m3-agiqa")) == parts.assessor.card
    reached(monkeypatch, NOBODY, parts.cache, offline=True)
    again = Assessor.from_pretrained("m3-agiqa")
    assert again.card.digest == parts.assessor.card.digest
    found, known = (each.assess(parts.image, PROMPT).to_dict() for each in (again, parts.assessor))
    assert found["aspects"] == known["aspects"]


def test_one_aspect_alone(afresh: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    assessor = Assessor.from_pretrained("m3-agiqa-authenticity")
    assert list(assessor.predictors) == [Aspect.AUTHENTICITY]
    (found,) = assessor.assess(afresh.image).aspects.values()
    (known,) = afresh.assessor.assess(afresh.image, aspects=[Aspect.AUTHENTICITY]).aspects.values()
    assert (found.description, found.raw_mos) == (known.description, pytest.approx(known.raw_mos, abs=1e-4))
    others = {name for aspect, name in ADAPTERS.items() if aspect is not Aspect.AUTHENTICITY}
    assert not any(name in path for path in afresh.hub.asked for name in others)
    assert sum(path.endswith(".ckpt") for path in set(afresh.hub.asked)) == 1
    assert capsys.readouterr() == ("", ""), "nothing of what the libraries tell"


@pytest.mark.parametrize("of_the_base", [HUB_FOLDER_VARIABLE, FOLDER_VARIABLE])
def test_folders_instead_of_the_hub(
    afresh: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_the_base: str
) -> None:
    root = tmp_path / "own"
    for name in M3_AGIQA.repositories:
        shutil.copytree(next(iter(afresh.hub.commits[name].values())), root / name)
    if of_the_base == FOLDER_VARIABLE:
        (root / BASE_MODEL).rename(tmp_path / "base")
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "base"))
    monkeypatch.setenv(HUB_FOLDER_VARIABLE, str(root))
    reached(monkeypatch, NOBODY, tmp_path / "cache")
    folder = checkpoint_named("m3-agiqa-quality")
    (found,) = Assessor.from_pretrained("m3-agiqa-quality").assess(afresh.image, PROMPT).aspects.values()
    known = afresh.assessor.assess(afresh.image, PROMPT).aspects[Aspect.QUALITY]
    assert (found.description, found.raw_mos) == (known.description, pytest.approx(known.raw_mos, abs=1e-4))
    assert not (tmp_path / "cache").exists()
    with pytest.raises(InputError, match=f"{BASE_MODEL} is taken from the folder .*{of_the_base}"):
        checkpoint_named("m3-agiqa-quality", revision={BASE_MODEL: "v1"})
    (root / ADAPTERS[Aspect.QUALITY] / "adapter_config.json").write_text("{}")
    assert checkpoint_named("m3-agiqa-quality") != folder, "other files are another model"


# --- revisions --------------------------------------------------------------------------------


def test_revisions_pin_all_repositories_or_one(afresh: Parts, tmp_path: Path) -> None:
    name = ADAPTERS[Aspect.QUALITY]
    before = afresh.hub.names[name]["main"]
    folder = assembled(M3_AGIQA)
    changed(afresh, name, tmp_path / "newer")
    newer = assembled(M3_AGIQA)
    titles = {read_card(each).title for each in (folder, newer)}
    assert len(titles) == 2 and all(title.startswith("m3-agiqa 1.0+") for title in titles)
    for pinned in ("v1", {name: "v1"}, {name: before}):
        assert assembled(M3_AGIQA, revision=pinned) == folder
    assert assembled(M3_AGIQA, revision={BASE_MODEL: "v1"}) == newer


def test_wrong_revisions_are_named_before_anything_is_downloaded(afresh: Parts, tmp_path: Path) -> None:
    name = ADAPTERS[Aspect.AUTHENTICITY]
    with pytest.raises(WeightsError, match=f"^{name} has no revision 'v7'"):
        Assessor.from_pretrained("m3-agiqa", revision={name: "v7"})
    with pytest.raises(InputError, match=r"m3-agiqa is not made of a/b, .* it is made of strawhat/"):
        Assessor.from_pretrained("m3-agiqa", revision={"a/b": "v1"})
    assert not any("/resolve/" in path for path in afresh.hub.asked)


# --- what can be wrong ------------------------------------------------------------------------


def test_without_a_network_it_is_reported(
    afresh: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached(monkeypatch, NOBODY, tmp_path / "cache", offline=True)
    with pytest.raises(
        WeightsError, match=f"{M3_AGIQA.predictors} is not.* on this machine.*cannot be reached"
    ):
        Assessor.from_pretrained("m3-agiqa")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("missing", rf"^{M3_AGIQA.predictors} has no file aigciqa-30k/quality/best.*\.ckpt"),
        ("pickle", "holds more than weights, or is no checkpoint; nothing of it was run"),
        ("other head", rf"best-epoch.* does not fit {BASE_MODEL}: the head does not have the 97 rows"),
    ],
)
def test_predictors_that_do_not_fit_are_named(
    afresh: Parts, tmp_path: Path, damage: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(afresh, M3_AGIQA.predictors, tmp_path / "changed")
    file = folder / M3_AGIQA.aspects[Aspect.QUALITY].predictor
    file.unlink()
    if damage == "pickle":
        torch.save({"state_dict": {}, "extra": Surprise()}, file)
    elif damage == "other head":
        lightning_file(Theirs(97, 24), file)
    with pytest.raises((WeightsError, InputError), match=sentence):
        Assessor.from_pretrained("m3-agiqa-quality")
    assert "a pickle was run" not in capsys.readouterr().out
    assert not any((tmp_path / "home" / "published").glob("*"))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("foreign", f"The adapter {ADAPTERS[Aspect.QUALITY]} is for another base"),
        ("renamed", f"The adapter {ADAPTERS[Aspect.QUALITY]} is for another base.*has no counterpart"),
        ("missing", f"{ADAPTERS[Aspect.QUALITY]} is no whole adapter"),
        ("gated", f"{ADAPTERS[Aspect.QUALITY]} is only for those who accepted its terms"),
    ],
)
def test_adapters_that_cannot_be_used_are_named(
    afresh: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, sentence: str
) -> None:
    name = ADAPTERS[Aspect.QUALITY]
    if damage == "gated":
        monkeypatch.setattr(afresh.hub, "gated", {name})
    else:
        folder = changed(afresh, name, tmp_path / "changed")
        settings = folder / "adapter_config.json"
        told = json.loads(settings.read_text())
        weights = folder / "adapter_model.safetensors"
        if damage == "renamed":
            tensors = load_file(weights)
            first = next(key for key in sorted(tensors) if ".lora_A" in key)
            tensors[first.replace("self_attn", "attention")] = tensors.pop(first)
            save_file(tensors, weights)
        else:
            settings.write_text(json.dumps({**told, "r": 2}))
        if damage == "missing":
            weights.unlink()
    with pytest.raises(WeightsError, match=sentence) as raised:
        Assessor.from_pretrained("m3-agiqa-quality")
    assert "\n" not in str(raised.value)


def test_an_old_library_is_named_before_anything_is_downloaded(
    afresh: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "OLDEST_TRANSFORMERS", "99")
    with pytest.raises(WeightsError, match="MiniCPM needs transformers 99 or newer"):
        Assessor.from_pretrained("m3-agiqa")
    assert not afresh.hub.asked


def test_too_little_memory_is_reported_before_weights_are_downloaded(
    afresh: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3agiqa.backbones.memory.room", lambda device: 1000)
    with pytest.raises(TooLittleMemory, match=r"needs 0\.0 GB of memory, and 0\.0 GB are free"):
        Assessor.from_pretrained("m3-agiqa")
    with pytest.raises(InputError, match="There is no device 'tpu'"):
        Assessor.from_pretrained("m3-agiqa", device="tpu")
    kinds = {path.suffix for path in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert kinds <= {".json"}


def test_a_home_that_cannot_be_written_is_named(
    afresh: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("M3AGIQA_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"m3-agiqa-quality cannot be kept in .*set M3AGIQA_HOME"):
        checkpoint_named("m3-agiqa-quality")


def test_a_damaged_folder_is_put_together_anew(afresh: Parts) -> None:
    folder = checkpoint_named("m3-agiqa-quality")
    digest = read_card(folder).digest
    (folder / "predictor-quality.safetensors").write_bytes(b"half")
    assert read_card(checkpoint_named("m3-agiqa-quality")).digest == digest


def test_a_note_of_what_it_is_made_of_can_be_damaged(tmp_path: Path) -> None:
    assert CheckpointBase.read(tmp_path) == CheckpointBase()
    (tmp_path / BASE_FILE).write_text('{"model": "x"}')
    with pytest.raises(WeightsError, match=rf"{BASE_FILE} does not say what the model is made of"):
        CheckpointBase.read(tmp_path)


def test_what_was_adapted_whole_is_not_trained_on(parts: Parts) -> None:
    (folder,) = (parts.home / "published").iterdir()
    with pytest.raises(
        InputError, match="adapters over the whole model, which can be used and not be trained"
    ):
        MiniCPMBackbone.for_training(folder)


# --- checkpoints on the Hub -------------------------------------------------------------------


def test_a_checkpoint_of_anyone_on_the_hub(afresh: Parts, tmp_path: Path) -> None:
    (folder,) = (afresh.home / "published").iterdir()
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "optimizer.bin").write_bytes(b"nobody needs it")
    first = afresh.hub.publish("someone/model", tmp_path / "model", "v1")
    told: list[str] = []
    found = checkpoint_named("someone/model", lambda message, done: told.append(message), "v1")
    assert found.name == first and read_card(found) == afresh.assessor.card
    assert any(message.startswith("Downloading someone/model (") for message in told)
    assert not (found / "optimizer.bin").exists()
    changed(afresh, "someone/model", tmp_path / "newer")
    assert checkpoint_named("someone/model").name != first
    assert checkpoint_named("someone/model", revision={"someone/model": first}) == found
    with pytest.raises(WeightsError, match="someone/model has no revision 'v7'"):
        checkpoint_named("someone/model", revision="v7")
    with pytest.raises(InputError, match=r"someone/model is not made of a/b"):
        checkpoint_named("someone/model", revision={"a/b": "v1"})


def test_names_that_stand_for_nothing(afresh: Parts, tmp_path: Path) -> None:
    for name in ("huge", "a/b/c", "hf:someone/model"):
        with pytest.raises(
            InputError, match=rf"no model '{name}'\. Give one of nano, m3-agiqa, .*organisation"
        ):
            checkpoint_named(name)
    with pytest.raises(
        InputError, match=r"There is no folder someone/else here\. The Hugging Face Hub has no"
    ):
        checkpoint_named("someone/else")
    with pytest.raises(InputError, match=f"{tmp_path} has no {CARD_FILE}, so it is no model"):
        checkpoint_named(tmp_path)
    asked = len(afresh.hub.asked)
    with pytest.raises(
        InputError, match=f"{BASE_MODEL} on the Hugging Face Hub is not a model of this program"
    ):
        checkpoint_named(BASE_MODEL)
    assert not any("/resolve/" in path for path in afresh.hub.asked[asked:]), "gigabytes for nothing"


def test_what_does_not_come_from_the_hub_has_no_revisions(parts: Parts) -> None:
    (folder,) = (parts.home / "published").iterdir()
    assert checkpoint_named(folder) == folder
    for name, sentence in (("nano", "nano comes with this package"), (folder, "is a folder on this machine")):
        with pytest.raises(InputError, match=f"{sentence}, so it has no revisions. Leave the revision out"):
            checkpoint_named(name, revision="v1")


# --- the command line -------------------------------------------------------------------------


def test_the_command_line(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts.image.save(tmp_path / "image.png")
    command = ["assess", str(tmp_path / "image.png"), "--prompt", PROMPT, "--json", "--model", "m3-agiqa"]
    pins = [f"--revision={BASE_MODEL}=v1", f"--revision={ADAPTERS[Aspect.QUALITY]}=v1"]
    assert cli.main([*command, *pins]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["aspects"] == parts.assessor.assess(parts.image, PROMPT).to_dict()["aspects"]
    assert found["model"] == parts.assessor.card.title
    assert cli.main([*command, "--revision", "v7"]) == 2
    told = capsys.readouterr()
    assert not told.out and "has no revision 'v7'" in told.err and len(told.err.splitlines()) == 1


def test_the_environment_pins_as_well(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts.image.save(tmp_path / "image.png")
    monkeypatch.setenv("M3AGIQA_REVISION", f"{BASE_MODEL}=v7")
    score = ["score", str(tmp_path), "--out", str(tmp_path / "scores.csv"), "--model", "m3-agiqa"]
    assert cli.main(score) == 2
    assert f"{BASE_MODEL} has no revision 'v7'" in capsys.readouterr().err
