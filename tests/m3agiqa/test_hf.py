"""Models of transformers as a backbone, several families of them, tiny and random."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from hf_models import FAMILIES, TEXT, tiny_folder
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.utils import is_torchvision_available

from m3agiqa import Aspect, Rating
from m3agiqa.backbones.base import Delta, Generation, Request, readable_prompt
from m3agiqa.backbones.base_model import BaseModel
from m3agiqa.backbones.hf import HfBackbone
from m3agiqa.backbones.loading import backbone_class, load_backbone
from m3agiqa.backbones.per_aspect import PerAspect
from m3agiqa.conversation import Conversation
from m3agiqa.errors import InputError, Stopped, WeightsError
from m3agiqa.prompt_elements import prompt_elements
from training.stages.curriculum import Lesson
from training.stages.finetune import FinetuneConfig, finetune

NOWHERE = Path("there-is-no-checkpoint")
ISSUE = ("smolvlm", "qwen2_5_vl", "llava_onevision")
TUNE = FinetuneConfig(rank=2, adapter_lr=0.05, full_lr=0.05, mixed_precision="no")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of models that some test has asked for."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def loaded() -> dict[Path, HfBackbone]:
    return {}


@pytest.fixture
def folder(folders: Path, family: str) -> Path:
    path = folders / family
    return path if path.exists() else tiny_folder(family, path)


@pytest.fixture
def backbone(folder: Path, loaded: dict[Path, HfBackbone]) -> HfBackbone:
    """Shared by all tests, so that none may change it."""
    if folder not in loaded:
        loaded[folder] = load_backbone(f"hf:{folder}", NOWHERE)
    return loaded[folder]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3agiqa.backbones.hf.backbone.MAX_NEW_TOKENS", 10)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def requests(picture: Image.Image) -> list[Request]:
    """Four conversations about two images of different shapes."""
    opened = tuple(Conversation.open(aspect, "a ball") for aspect in Aspect)
    turned = picture.resize((60, 150))
    return [Request(picture, opened), Request(turned, opened[:1])]


def told(asked: list[Request], said: list[Generation]) -> list[Request]:
    texts = iter(spoken.description for spoken in said)
    return [
        Request(request.image, tuple(c.describe(next(texts)) for c in request.conversations))
        for request in asked
    ]


def apart(asked: list[Request]) -> list[Request]:
    return [Request(request.image, (c,)) for request in asked for c in request.conversations]


def spoken(backbone: HfBackbone, asked: list[Request]) -> list[Generation]:
    said = [each for each in backbone.describe(asked) if isinstance(each, Generation)]
    return sorted(said, key=lambda each: each.row)


def end_early(monkeypatch: pytest.MonkeyPatch, backbone: HfBackbone, asked: list[Request]) -> None:
    """Let the fourth letter that the first row says end a description."""
    letter = backbone.chat.tokenizer(spoken(backbone, asked)[0].description[3])["input_ids"]
    monkeypatch.setattr(backbone.chat, "ends", backbone.chat.ends | {*letter})


def close(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-3) for a, b in zip(found, expected, strict=True))


# --- speaking and reading ----------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_read_and_generates_as_the_library_has_it(backbone: HfBackbone, picture: Image.Image) -> None:
    """Against the library's own way: one text, one forward, its own generation."""
    request = Request(picture, (Conversation.open(Aspect.CORRESPONDENCE, "a ball"),))
    asked = request.conversations[0].turns[0].content
    content = [{"type": "image"}, {"type": "text", "text": asked}]
    processor, model = backbone.chat.processor, backbone.model
    text = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=processor.chat_template,
        tokenize=False,
        add_generation_prompt=True,
    )
    inputs = processor(text=[text], images=[[picture]], return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits[0]
        end = processor.tokenizer.eos_token_id
        ids = model.generate(**inputs, max_new_tokens=10, do_sample=False, eos_token_id=end)
    [states] = backbone.encode([request])
    assert states.shape == (len(logits), backbone.hidden_size)
    assert backbone.head.shape == (backbone.vocab_size, backbone.hidden_size)
    assert torch.allclose(states @ backbone.head.T, logits, atol=1e-3)
    [said] = spoken(backbone, [request])
    assert said.description == processor.tokenizer.decode(ids[0, len(logits) :])


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_together_are_what_they_are_one_by_one(
    backbone: HfBackbone, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(picture)
    end_early(monkeypatch, backbone, asked)
    together = spoken(backbone, asked)
    alone = [spoken(backbone, [request])[0] for request in apart(asked)]
    assert [each.description for each in together] == [each.description for each in alone]
    assert [each.rating for each in together] == [each.rating for each in alone]
    assert close([each.hidden for each in together], [each.hidden for each in alone])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_generated_is_read_alike(folder: Path, picture: Image.Image, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    template = tmp_path / "chat_template.jinja"
    # A letter-wise model would have to say the space that SmolVLM's template puts before an answer.
    template.write_text(template.read_text().replace("{{ ': ' }}", ":"))
    backbone = load_backbone(f"hf:{tmp_path}", NOWHERE)
    asked = requests(picture)
    said = spoken(backbone, asked)
    assert close(backbone.encode(told(asked, said)), [each.hidden for each in said])


@pytest.mark.parametrize("family", FAMILIES)
def test_elements_of_the_prompt_are_asked_about(
    backbone: HfBackbone, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several at once as each alone, by the states of a conversation that is ready for its answer."""
    monkeypatch.setattr("m3agiqa.backbones.hf.backbone.GENERATION_BATCH_SIZE", 2)
    elements = prompt_elements("two red balls on a hill, oil painting")
    answers = backbone.chat.first_tokens(["Yes", "No"]) + backbone.chat.first_tokens(["yes", "no"])
    checked = PerAspect({Aspect.CORRESPONDENCE: backbone}).check_elements(picture, elements)
    assert [each.element for each in checked] == list(elements) and len(elements) > 3
    for each in checked:
        [states] = backbone.encode([Request(picture, (Conversation.about_element(each.element),))])
        yes, no, small_yes, small_no = (states[-1] @ backbone.head[answers].T).exp().tolist()
        expected = (yes + small_yes) / (yes + small_yes + no + small_no)
        assert each.probability == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("family", ISSUE)
def test_deltas_are_the_description_and_a_stop_is_heeded(
    backbone: HfBackbone, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_early(monkeypatch, backbone, requests(picture))
    texts, said = dict.fromkeys(range(4), ""), {}
    for each in backbone.describe(requests(picture)):
        if isinstance(each, Delta):
            texts[each.row] += each.text
        else:
            said[each.row] = each.description
    assert texts == said
    assert len({len(text) for text in said.values()}) > 1, "rows end at different times"
    answers = iter([False, False, True])
    with pytest.raises(Stopped):
        list(backbone.describe(requests(picture), lambda: next(answers)))


@pytest.mark.parametrize("family", ["qwen2_5_vl"])
def test_a_long_description_ends_with_a_sentence(
    backbone: HfBackbone, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = apart(requests(picture))[:1]
    [long] = spoken(backbone, asked)
    monkeypatch.setattr("m3agiqa.backbones.generation.SENTENCE_ENDS", (long.description[3],))
    [cut] = spoken(backbone, asked)
    assert cut.description == long.description[: long.description.rindex(long.description[3]) + 1]
    assert close([cut.hidden], backbone.encode(told(asked, [cut])))


@pytest.mark.parametrize("family", ISSUE)
def test_of_a_long_prompt_as_much_is_read_as_there_is_room_beside_the_image(
    backbone: HfBackbone, picture: Image.Image
) -> None:
    prompt = "ball " * 1600
    whole = Request(picture, (Conversation.open(Aspect.QUALITY, prompt),))
    with pytest.raises(InputError, match="too long"):
        list(backbone.describe([whole]))
    read = readable_prompt(PerAspect(dict.fromkeys(Aspect, backbone)), picture, prompt)
    assert prompt.startswith(read) and 1000 < len(read) < TEXT["max_position_embeddings"]
    asked = Request(picture, tuple(Conversation.open(aspect, read) for aspect in Aspect))
    assert len(spoken(backbone, [asked])) == 3
    beyond = Request(picture, (Conversation.open(Aspect.CORRESPONDENCE, prompt[: len(read) + 300]),))
    with pytest.raises(InputError, match="too long"):
        list(backbone.describe([beyond]))


# --- markup ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ISSUE)
def test_what_people_write_is_not_markup(backbone: HfBackbone) -> None:
    chat = backbone.chat
    specials = chat.tokenizer.added_tokens_decoder
    markup = " ".join(str(token) for token in specials.values())

    def marks(prompt: str) -> list[int]:
        told = Conversation.open(Aspect.CORRESPONDENCE, prompt).describe(prompt)
        return [token for token in chat.rest(told, True).ids if token in specials]

    assert marks(markup) == marks("a ball")
    text = chat.tokenizer.decode(chat.rest(Conversation.open(Aspect.CORRESPONDENCE, markup), True).ids)
    assert markup in text


@pytest.mark.parametrize("family", ISSUE)
def test_answers_are_what_the_assistant_says(backbone: HfBackbone, picture: Image.Image) -> None:
    whole = Conversation.open(Aspect.QUALITY, None).describe("It is sharp.").rate(Rating.GOOD)
    answers = backbone.answers([Request(picture, (whole, whole)), Request(picture, (whole,))])
    decode, end = backbone.chat.tokenizer.decode, backbone.chat.tokenizer.eos_token
    space = " " if "smolvlm" in backbone.made_of.model else ""  # as its template writes
    said = [decode(answers.ids[answers.turn == turn]) for turn in (1, 2)]
    assert said == [f"{space}It is sharp.{end}" * 3, f"{space}good{end}" * 3]
    assert [decode([word]) for word in backbone.chat.rating_tokens] == [word[0] for word in Rating]
    hidden = backbone.encode([Request(picture, (whole,))])[0]
    spoken = hidden @ backbone.head.T
    assert torch.allclose(answers.logits[-1], spoken[-2], atol=1e-3), "the end after the rating word"


@pytest.mark.parametrize("family", ISSUE)
def test_texts_without_an_image_teach(backbone: HfBackbone) -> None:
    whole = Conversation.open(Aspect.QUALITY, None).describe("It is sharp.").rate(Rating.GOOD)
    logits = backbone.answers([Request(None, (whole,))]).logits
    assert logits.isfinite().all()


# --- parts and learning ------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_in_one_part(backbone: HfBackbone) -> None:
    held = [id(w) for part in backbone.parts.values() for w in {*part.module.parameters()}]
    assert sorted(held) == sorted(id(w) for w in {*backbone.model.parameters()})
    assert {"vision", "language"} <= backbone.parts.keys() <= {"vision", "connector", "language"}


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_goes_into_the_linear_layers_of_the_vision_tower(folder: Path) -> None:
    backbone = backbone_class(f"hf:{folder}").for_training(None)
    vision = backbone.parts["vision"]
    linear = [name for name, m in vision.module.named_modules() if type(m) is nn.Linear]
    get_peft_model(vision.module, LoraConfig(r=2, target_modules=vision.lora))
    taken = {name for name, m in backbone.model.named_modules() if hasattr(m, "lora_A")}
    towers = {name.split(".")[1] for name in taken}
    assert len(taken) == len(linear) > 4
    assert len(towers) == 1 and towers <= {"vision_model", "visual", "vision_tower"}


@pytest.mark.parametrize("family", ISSUE)
def test_one_step_changes_the_vision_tower_alone_and_is_found_again(
    folder: Path, backbone: HfBackbone, picture: Image.Image, tmp_path: Path
) -> None:
    name, out = f"hf:{folder}", tmp_path / "out"
    picture.save(tmp_path / "ball.png")
    whole = Conversation.open(Aspect.QUALITY, None).describe("It is sharp.").rate(Rating.GOOD)
    finetune([[Lesson(tmp_path / "ball.png", (whole,))]], None, out, TUNE, name)
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.safetensors") if "state" not in p.parts} == {
        "vision-adapter/adapter_model.safetensors"
    }
    asked = [Request(picture, (whole,))]
    before = dict(backbone.model.named_parameters())
    learned = load_backbone(name, out)
    tower = {id(weight) for weight in learned.anatomy.vision.parameters()}
    for key, weight in learned.model.named_parameters():
        if id(weight) not in tower:
            assert torch.equal(weight, before[key]), key
    assert not close(learned.encode(asked), backbone.encode(asked))
    assert close(load_backbone("hf", out).encode(asked), learned.encode(asked)), (
        "the folder says what it is of"
    )
    again = tmp_path / "again"
    finetune([[Lesson(tmp_path / "ball.png", (whole,))]], out, again, TUNE, name)
    losses = [json.loads((path / "log.jsonl").read_text())["loss"] for path in (out, again)]
    assert losses[1] != losses[0], "it learns on from where it was"


@pytest.mark.parametrize("family", ["llava_onevision"])
def test_an_adapter_for_each_aspect_over_shared_weights(
    folder: Path, picture: Image.Image, tmp_path: Path
) -> None:
    name, out = f"hf:{folder}", tmp_path / "out"
    picture.save(tmp_path / "ball.png")
    whole = [
        Conversation.open(aspect, None).describe("It is sharp.").rate(Rating.GOOD)
        for aspect in (Aspect.QUALITY, Aspect.AUTHENTICITY)
    ]
    config = replace(TUNE, tune=("vision", "connector"), aspects=(Aspect.QUALITY, Aspect.AUTHENTICITY))
    finetune([[Lesson(tmp_path / "ball.png", tuple(whole))]], None, out, config, name)
    both = load_backbone(name, out)
    quality, authenticity = both.backbones.values()
    shared = [{w.data_ptr() for w in b.anatomy.language.parameters()} for b in (quality, authenticity)]
    assert shared[0] == shared[1]
    [states] = both.encode([Request(picture, (whole[0],))])
    assert close([states], quality.encode([Request(picture, (whole[0],))]))
    assert not close([states], authenticity.encode([Request(picture, (whole[0],))]))


@pytest.mark.parametrize("family", ISSUE)
def test_checkpointed_gradients_are_the_same(folder: Path, picture: Image.Image) -> None:
    whole = Conversation.open(Aspect.QUALITY, None).describe("It is sharp.").rate(Rating.GOOD)
    asked = [Request(picture, (whole, whole)), Request(picture.resize((60, 150)), (whole,))]
    backbone = backbone_class(f"hf:{folder}").for_training(None)
    gradients = []
    for _ in range(2):
        backbone.model.requires_grad_()
        backbone.model.zero_grad()
        answers = backbone.answers(asked)
        nn.functional.cross_entropy(answers.logits, answers.ids).backward()
        gradients.append([w.grad.clone() for w in backbone.anatomy.vision.parameters() if w.grad is not None])
        backbone.enable_gradient_checkpointing()
    assert len(gradients[0]) > 8
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-3 * one.abs().max().item() + 1e-6)


# --- names and errors --------------------------------------------------------------------------


def test_names() -> None:
    assert BaseModel.parse("org/name") == BaseModel("org/name")
    assert BaseModel.parse("org/name@v1.0") == BaseModel("org/name", "v1.0")
    assert str(BaseModel("org/name", "v1.0")) == "org/name@v1.0"
    commit = 10 * "0a1b"
    assert BaseModel("org/name").pinned(Path("snapshots", commit)) == BaseModel("org/name", commit)
    assert backbone_class("hf:org/name").revision == HfBackbone.revision
    with pytest.raises(WeightsError, match="Name the model"):
        BaseModel.parse("@v1.0")


def test_a_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="cannot be reached"):
        load_backbone("hf:org/name", NOWHERE)
    with pytest.raises(WeightsError, match="There is no folder"):
        load_backbone(f"hf:{tmp_path / 'model'}", NOWHERE)
    with pytest.raises(WeightsError, match="not said which model"):
        load_backbone("hf", NOWHERE)


@pytest.mark.parametrize("family", ["qwen2_5_vl"])
@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", '{"model_type": "of_tomorrow"}', "Upgrade it with"),
        ("chat_template.jinja", None, "without a chat template"),
        ("chat_template.jinja", "{{ nothing.at.all }}", "chat template cannot be used"),
        ("chat_template.jinja", "Hello!", "leaves out what is said"),
        ("preprocessor_config.json", None, "no usable processor"),
        ("tokenizer.json", None, "no usable processor"),
        ("model.safetensors", None, "cannot be loaded"),
        ("model.safetensors", "cut off", "cannot be loaded"),
    ],
)
def test_folders_that_lack_something(
    folder: Path, tmp_path: Path, file: str, text: str | None, sentence: str
) -> None:
    broken = shutil.copytree(folder, tmp_path / "model")
    (broken / file).unlink()
    if text is not None:
        (broken / file).write_text(text)
    with pytest.raises(WeightsError, match=sentence):
        load_backbone(f"hf:{broken}", NOWHERE)


@pytest.mark.parametrize("family", ["qwen2_5_vl"])
def test_weights_that_are_not_all_there(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "patch_embed" in name)]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="lacks 1 of its weights"):
        load_backbone(f"hf:{broken}", NOWHERE)


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
@pytest.mark.parametrize("family", ["qwen2_5_vl"])
def test_images_that_only_torchvision_can_prepare(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "model")
    (broken / "preprocessor_config.json").write_text('{"image_processor_type": "Lfm2VlImageProcessor"}')
    with pytest.raises(WeightsError, match="pip install torchvision"):
        load_backbone(f"hf:{broken}", NOWHERE)


@pytest.mark.parametrize("family", ["qwen2_5_vl"])
def test_code_that_comes_with_a_model_is_not_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # to whether it shall be, if anyone asks
    copied = shutil.copytree(folder, tmp_path / "model")
    named = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
    (copied / "preprocessor_config.json").write_text(json.dumps(named))
    (copied / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(WeightsError, match="code that comes with a model is not run"):
        load_backbone(f"hf:{copied}", NOWHERE)
    assert not (tmp_path / "run").exists()


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=8, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="does not write text about images"):
        load_backbone(f"hf:{tmp_path}", NOWHERE)


@pytest.mark.parametrize("family", ["qwen2_5_vl"])
def test_a_checkpoint_of_another_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "backbone.json").write_text('{"model": "org/other", "revision": null, "dtype": null}')
    with pytest.raises(WeightsError, match="made of org/other"):
        load_backbone(f"hf:{folder}", tmp_path)
    (tmp_path / "backbone.json").write_text('{"modle": "org/other"}')
    with pytest.raises(WeightsError, match="does not name a model"):
        load_backbone("hf", tmp_path)


@pytest.mark.parametrize("family", ["qwen2_5_vl"])
def test_folders_of_older_versions(folder: Path, tmp_path: Path, backbone: HfBackbone) -> None:
    """The processor named with the images' settings, the template in JSON."""
    older = shutil.copytree(folder, tmp_path / "model")
    (older / "processor_config.json").unlink()
    template = (older / "chat_template.jinja").read_text()
    (older / "chat_template.jinja").unlink()
    (older / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    settings = json.loads((older / "preprocessor_config.json").read_text())
    settings |= {"processor_class": "Qwen2_5_VLProcessor", "image_processor_type": "Qwen2VLImageProcessor"}
    (older / "preprocessor_config.json").write_text(json.dumps(settings))
    asked = Conversation.open(Aspect.QUALITY, None)
    assert load_backbone(f"hf:{older}", NOWHERE).chat.rest(asked, True) == backbone.chat.rest(asked, True)


@pytest.mark.parametrize("family", ["qwen2_5_vl"])
def test_the_precision_of_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    BaseModel(str(folder), dtype="bfloat16").write(tmp_path)
    assert load_backbone("hf", tmp_path).head.dtype == torch.bfloat16
    assert load_backbone(f"hf:{folder}", NOWHERE).head.dtype == torch.float32
