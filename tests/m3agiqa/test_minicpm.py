"""The MiniCPM backbone as speaker, as encoder and as what is fine-tuned."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_minicpm import published_adapter, tiny_model, tokenizer, write_base
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from m3agiqa import Aspect, Rating
from m3agiqa.backbones.base import Delta, Generation, Request, readable_prompt
from m3agiqa.backbones.minicpm import backbone as backbone_module
from m3agiqa.backbones.minicpm.backbone import (
    LANGUAGE_ADAPTER_FOLDER,
    PUBLISHED_ADAPTER_FOLDER,
    RESAMPLER_FILE,
    VISION_ADAPTER_FOLDER,
    MiniCPMBackbone,
    with_adapter,
)
from m3agiqa.backbones.minicpm.base_weights import FOLDER_VARIABLE
from m3agiqa.backbones.minicpm.slicing import Slicing
from m3agiqa.backbones.per_aspect import PerAspect
from m3agiqa.conversation import Conversation
from m3agiqa.errors import InputError, Stopped, WeightsError
from m3agiqa.prompt_elements import prompt_elements

TOKENS = 14
SLICING = Slicing(scale_resolution=112)  # small slices, so that tests are fast


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_module, "MAX_NEW_TOKENS", TOKENS)


@pytest.fixture(scope="module")
def minicpm() -> MiniCPMBackbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def wide() -> Image.Image:
    noise = torch.randint(0, 256, (90, 180, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    return Image.fromarray(noise.numpy())


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What checkpoints are loaded onto."""
    folder = write_base(tmp_path / "base")
    (folder / "preprocessor_config.json").write_text(json.dumps({"scale_resolution": 112}))
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    return folder


def tiny_backbone() -> MiniCPMBackbone:
    return MiniCPMBackbone(tiny_model(), PreTrainedTokenizerFast(tokenizer_object=tokenizer()), SLICING)


def opened(*aspects: Aspect) -> tuple[Conversation, ...]:
    return tuple(Conversation.open(aspect, "a wide cat") for aspect in aspects)


def whole(*aspects: Aspect) -> tuple[Conversation, ...]:
    return tuple(c.describe(f"About its {c.aspect}.").rate(Rating.GOOD) for c in opened(*aspects))


def spoken(backbone: MiniCPMBackbone | PerAspect, *requests: Request) -> list[Generation]:
    said = [event for event in backbone.describe(requests) if isinstance(event, Generation)]
    return sorted(said, key=lambda each: each.row)


def close(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, expected, strict=True))


# --- speaking and reading ---------------------------------------------------------------------


def test_what_is_streamed_is_what_was_generated(
    minicpm: MiniCPMBackbone, wide: Image.Image, picture: Image.Image
) -> None:
    requests = [Request(wide, opened(*Aspect)), Request(picture, opened(Aspect.QUALITY))]
    events = list(minicpm.describe(requests))
    ends = {event.row: event for event in events if isinstance(event, Generation)}
    assert sorted(ends) == [0, 1, 2, 3]
    assert len({end.description for end in ends.values()}) > 1
    for row, end in ends.items():
        text = "".join(event.text for event in events if isinstance(event, Delta) and event.row == row)
        assert text.startswith(end.description) and end.description


def test_a_batch_is_the_same_as_one_by_one(
    minicpm: MiniCPMBackbone, wide: Image.Image, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [Request(wide, opened(*Aspect)), Request(picture, opened(*Aspect))]
    together = spoken(minicpm, *requests)
    apart = [
        spoken(minicpm, Request(request.image, (conversation,)))[0]
        for request in requests
        for conversation in request.conversations
    ]
    monkeypatch.setattr(backbone_module, "GENERATION_BATCH_SIZE", 3)
    in_groups = spoken(minicpm, *requests)
    monkeypatch.setattr(backbone_module, "GENERATION_BATCH_SIZE", 24)
    monkeypatch.setattr(backbone_module, "room", lambda device: 0)
    in_little_memory = spoken(minicpm, *requests)
    for others in (apart, in_groups, in_little_memory):
        facts = [(each.description, each.rating) for each in others]
        assert facts == [(each.description, each.rating) for each in together]
        assert close([each.hidden for each in others], [each.hidden for each in together])


def test_what_was_generated_is_encoded_to_the_same_states(
    minicpm: MiniCPMBackbone, wide: Image.Image, picture: Image.Image
) -> None:
    requests = [Request(wide, opened(*Aspect)), Request(picture, opened(Aspect.QUALITY))]
    said = iter(spoken(minicpm, *requests))
    told = [next(said) for request in requests for _ in request.conversations]
    given = iter(told)
    retold = [
        Request(request.image, tuple(c.describe(next(given).description) for c in request.conversations))
        for request in requests
    ]
    assert close(minicpm.encode(retold), [each.hidden for each in told])


def test_states_are_what_the_head_sees_up_to_the_second_question(
    minicpm: MiniCPMBackbone, wide: Image.Image
) -> None:
    conversation = opened(Aspect.QUALITY)[0].describe("Sharp.")
    (states,) = minicpm.encode([Request(wide, (conversation,))])
    chat, model = minicpm.chat, minicpm.model
    slices = backbone_module.sliced(wide, SLICING)
    assert slices.grid == (2, 1)
    ids = torch.tensor(
        chat.begin + chat.image(slices.grid, 96) + chat.tokens(conversation, after_image=True).ids
    )
    assert len(states) == len(ids) and ids[-1] == chat.end
    embedded = model.embed(ids, model.vision_tower(slices), ids == chat.placeholder)
    logits = model.llm(inputs_embeds=embedded[None]).logits[0]
    torch.testing.assert_close(states @ minicpm.head.T, logits, atol=1e-4, rtol=0)
    assert minicpm.head.shape == (minicpm.vocab_size, minicpm.hidden_size)


def test_the_rating_is_the_likeliest_of_the_five_words(minicpm: MiniCPMBackbone, wide: Image.Image) -> None:
    (said,) = spoken(minicpm, Request(wide, opened(Aspect.QUALITY)))
    rated = opened(Aspect.QUALITY)[0].describe(said.description).rate(Rating.GOOD)
    (states,) = minicpm.encode([Request(wide, (rated,))])
    before_the_word = states[-len("good") - 2]  # and its end
    logits = minicpm.head @ before_the_word
    words = {rating: logits[minicpm.chat.encode(rating)[0]] for rating in Rating}
    assert said.rating == max(words, key=words.get)


def test_elements_of_the_prompt_are_asked_about(
    minicpm: MiniCPMBackbone, wide: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone_module, "GENERATION_BATCH_SIZE", 2)
    elements = prompt_elements("two red balls on a hill")
    chat, model, slices = minicpm.chat, minicpm.model, backbone_module.sliced(wide, SLICING)
    for each in minicpm.check_elements(wide, elements):
        question = chat.tokens(Conversation.about_element(each.element), after_image=True).ids
        ids = torch.tensor([*chat.begin, *chat.image(slices.grid, 96), *question, *chat.ready])
        embedded = model.embed(ids, model.vision_tower(slices), ids == chat.placeholder)
        answers = chat.first_tokens(["Yes", "No", "yes", "no"])
        yes, no, small_yes, small_no = model.llm(inputs_embeds=embedded[None]).logits[0, -1, answers].exp()
        expected = (yes + small_yes) / (yes + small_yes + no + small_no)
        assert each.probability == pytest.approx(float(expected), abs=1e-4)


def replaces(backbone: MiniCPMBackbone, mark: str, letter: str) -> None:
    """From now on the mark is spoken wherever the letter was."""
    ids = [backbone.chat.tokenizer.convert_tokens_to_ids(token) for token in (mark, letter)]
    head = backbone.model.llm.lm_head.weight
    head[ids[0]] = head[ids[1]] * 1.01


@pytest.mark.parametrize("mark", ["<|eot_id|>", "<|end_of_text|>"])
def test_rows_end_at_different_times(wide: Image.Image, mark: str) -> None:
    backbone = tiny_backbone()
    request = Request(wide, opened(*Aspect))
    texts = [each.description for each in spoken(backbone, request)]
    letter = next(c for c in texts[0] if not all(c in text for text in texts))
    replaces(backbone, mark, letter)
    together = spoken(backbone, request)
    assert [each.description for each in together] == [text.partition(letter)[0] for text in texts]
    apart = [spoken(backbone, Request(wide, (c,)))[0] for c in request.conversations]
    assert [each.description for each in together] == [each.description for each in apart]
    assert close([each.hidden for each in together], [each.hidden for each in apart])


def test_a_cut_description_ends_with_a_sentence(wide: Image.Image) -> None:
    backbone = tiny_backbone()
    request = Request(wide, opened(Aspect.QUALITY))
    (before,) = spoken(backbone, request)
    assert len(before.description) == TOKENS
    letter = before.description[4]
    replaces(backbone, ".", letter)
    (said,) = spoken(backbone, request)
    assert said.description.startswith(before.description.partition(letter)[0] + ".")
    assert said.description.endswith(".") and len(said.description) < TOKENS
    retold = request.conversations[0].describe(said.description)
    assert close(backbone.encode([Request(wide, (retold,))]), [said.hidden])


def test_text_alone_can_be_read(minicpm: MiniCPMBackbone) -> None:
    (states,) = minicpm.encode([Request(None, whole(Aspect.QUALITY))])
    assert (
        minicpm.chat.placeholder not in minicpm.chat.tokens(whole(Aspect.QUALITY)[0], after_image=False).ids
    )
    assert states.shape[1] == minicpm.hidden_size and states.isfinite().all()


def test_stopping_and_prompts_that_are_too_long(minicpm: MiniCPMBackbone, picture: Image.Image) -> None:
    with pytest.raises(Stopped):
        list(minicpm.describe([Request(picture, opened(Aspect.QUALITY))], stop=lambda: True))
    conversation = Conversation.open(Aspect.QUALITY, "cat " * 300)
    with pytest.raises(InputError, match="too long for this model"):
        list(minicpm.describe([Request(picture, (conversation,))]))
    read = readable_prompt(minicpm, picture, "cat " * 300)
    assert "cat " * 150 < read < "cat " * 300
    assert spoken(minicpm, Request(picture, (Conversation.open(Aspect.CORRESPONDENCE, read),)))


# --- adapters ---------------------------------------------------------------------------------


def vision_adapter(folder: Path, seed: int, resampler: bool = False) -> None:
    """What fine-tuning the vision side leaves."""
    backbone = tiny_backbone()
    torch.manual_seed(seed)
    part = backbone.parts["vision"]
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=part.lora, init_lora_weights=False)
    get_peft_model(part.module, lora).save_pretrained(folder / part.file)
    if resampler:
        weights = {name: value + 0.02 for name, value in backbone.model.resampler.state_dict().items()}
        save_file(weights, folder / RESAMPLER_FILE)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_published_adapter_gives_the_model_that_was_trained(
    tmp_path: Path, wide: Image.Image, kind: str
) -> None:
    trained = published_adapter(tmp_path, 1, kind)
    base = tiny_model()
    model = with_adapter(base, tmp_path)
    slices = backbone_module.sliced(wide, SLICING)
    theirs = trained.base_model.model
    seen = theirs.resampler.modules_to_save["default"](
        theirs.vpm.modules_to_save["default"](slices.pixels), slices.sizes
    )
    torch.testing.assert_close(model.vision_tower(slices), seen)
    assert not torch.allclose(base.vision_tower(slices), seen)
    logits = trained.base_model.model.llm(inputs_embeds=seen[:1]).logits
    torch.testing.assert_close(model.llm(inputs_embeds=seen[:1]).logits, logits)
    assert not torch.allclose(base.llm(inputs_embeds=seen[:1]).logits, logits)


def test_one_adapter_an_aspect_with_the_base_in_memory_once(
    base: Path, tmp_path: Path, wide: Image.Image
) -> None:
    folder, aspects = tmp_path / "checkpoint", (Aspect.QUALITY, Aspect.AUTHENTICITY)
    for seed, aspect in enumerate(aspects):
        published_adapter(folder / aspect / PUBLISHED_ADAPTER_FOLDER, seed)
    both = MiniCPMBackbone.load(folder)
    assert isinstance(both, PerAspect) and set(both.backbones) == set(aspects)
    first, second = (backbone.model for backbone in both.backbones.values())
    shared = [("llm.model.embed_tokens.weight", True), ("llm.lm_head.weight", True)]
    shared += [("llm.model.layers.1.mlp.up_proj.weight", True), ("vpm.post_layernorm.weight", False)]
    shared += [("llm.model.layers.1.self_attn.q_proj.base_layer.weight", True)]
    shared += [
        ("llm.model.layers.1.self_attn.q_proj.lora_A.default.weight", False),
        ("resampler.query", False),
    ]
    for name, same in shared:
        assert (first.get_parameter(name).data_ptr() == second.get_parameter(name).data_ptr()) == same, name
    said = spoken(both, Request(wide, opened(*aspects)))
    for aspect, each in zip(aspects, said, strict=True):
        (alone,) = spoken(MiniCPMBackbone.load(folder / aspect), Request(wide, opened(aspect)))
        assert (alone.description, alone.rating) == (each.description, each.rating)
        assert close([alone.hidden], [each.hidden])
    assert not torch.allclose(said[0].hidden[10:100], said[1].hidden[10:100])
    with pytest.raises(InputError, match="not for correspondence"):
        both.encode([Request(wide, whole(*Aspect))])


def test_aspects_that_differ_in_what_they_see_are_generated_in_one_batch(
    base: Path, tmp_path: Path, wide: Image.Image
) -> None:
    folder, aspects = tmp_path / "checkpoint", (Aspect.QUALITY, Aspect.AUTHENTICITY)
    for seed, aspect in enumerate(aspects):
        vision_adapter(folder / aspect, seed, resampler=bool(seed))
    both = MiniCPMBackbone.load(folder)
    assert isinstance(both, MiniCPMBackbone)
    forwards: list[int] = []
    both.model.llm.model.register_forward_hook(
        lambda module, args, output: forwards.append(len(output.last_hidden_state))
    )
    said = spoken(both, Request(wide, opened(*aspects)))
    assert forwards[:2] == [2, 2]
    for aspect, each in zip(aspects, said, strict=True):
        (alone,) = spoken(MiniCPMBackbone.load(folder / aspect), Request(wide, opened(aspect)))
        assert alone.description == each.description
        assert close([alone.hidden], [each.hidden])
    with pytest.raises(InputError, match="for quality, authenticity, not for correspondence"):
        both.encode([Request(wide, whole(*Aspect))])


@pytest.mark.parametrize("damage", ["pickle", "no weights", "no settings", "shape", "name", "kind"])
def test_adapters_that_do_not_fit_are_named(tmp_path: Path, damage: str) -> None:
    published_adapter(tmp_path, 1)
    weights, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    tensors = load_file(weights)
    said = "is for another base"
    if damage == "pickle":
        weights.unlink()
        torch.save({"x": Path("x")}, tmp_path / "adapter_model.bin")
        said = "holds more than weights"
    elif damage == "no weights":
        weights.unlink()
        said = "is no whole adapter"
    elif damage == "no settings":
        settings.unlink()
        said = "is no whole adapter"
    elif damage == "shape":
        name = next(name for name in tensors if "lora_A" in name)
        save_file({**tensors, name: torch.zeros(4, 128)}, weights)
    elif damage == "name":
        save_file({**tensors, "base_model.model.vpm.head.weight": torch.zeros(2)}, weights)
        said = "vpm.head.weight is not in it"
    else:
        settings.write_text(json.dumps({"peft_type": "IA3", "target_modules": ["q_proj"]}))
        said = "only LoRA is supported"
    with pytest.raises(WeightsError, match=said):
        with_adapter(tiny_model(), tmp_path)


# --- training ---------------------------------------------------------------------------------


def test_answers_are_what_the_assistant_says(minicpm: MiniCPMBackbone, wide: Image.Image) -> None:
    request = Request(wide, whole(Aspect.QUALITY))
    answers = minicpm.answers([request, request])
    said = minicpm.chat.tokenizer.decode(answers.ids)
    assert said == 2 * "About its quality.<|eot_id|>good<|eot_id|>"
    assert answers.turn.tolist() == 2 * ([1] * 19 + [2] * 5)
    (states,) = minicpm.encode([request])
    torch.testing.assert_close(answers.logits[23], minicpm.head @ states[-2], atol=1e-4, rtol=0)


def test_lora_goes_into_the_vision_encoder_alone() -> None:
    backbone = tiny_backbone()
    part = backbone.parts["vision"]
    get_peft_model(part.module, LoraConfig(r=2, target_modules=part.lora))
    changed = {name.split(".lora_")[0] for name, _ in backbone.model.named_parameters() if ".lora_" in name}
    layers = [name for name, m in tiny_model().vpm.encoder.named_modules() if isinstance(m, nn.Linear)]
    assert changed == {f"vpm.encoder.{name}" for name in layers} and len(layers) == 12


@pytest.mark.parametrize("seen", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(wide: Image.Image, seen: bool) -> None:
    def run(checkpointing: bool) -> tuple[list[Tensor], int]:
        backbone, calls = tiny_backbone(), []
        tuned = [backbone.model.resampler.requires_grad_()]
        for name in ("vision", "language"):
            part = backbone.parts[name]
            torch.manual_seed(1)
            lora = LoraConfig(r=2, target_modules=part.lora, init_lora_weights=False)
            tuned.append(get_peft_model(part.module, lora).train())
        backbone.model.llm.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
        if checkpointing:
            backbone.enable_gradient_checkpointing()
        answers = backbone.answers([Request(wide if seen else None, whole(*Aspect))])
        nn.functional.cross_entropy(answers.logits, answers.ids).backward()
        parameters = [p for module in tuned for p in module.parameters()]
        return [p.grad for p in parameters if p.grad is not None], len(calls)

    usual, calls = run(False)
    lean, calls_of_lean = run(True)
    assert (calls, calls_of_lean) == (1, 2)
    assert len(usual) == len(lean) and any(gradient.any() for gradient in usual)
    scale = max(gradient.abs().max() for gradient in usual)
    assert all(torch.allclose(a, b, atol=1e-4 * scale) for a, b in zip(usual, lean, strict=True))


@pytest.mark.parametrize("seen", [True, False])
def test_inputs_follow_the_weights(wide: Image.Image, seen: bool) -> None:
    request = Request(wide if seen else None, whole(*Aspect))
    backbone = tiny_backbone()
    for part in backbone.parts.values():
        part.module.to(torch.bfloat16)
    assert backbone.answers([request]).logits.dtype == torch.bfloat16


def test_what_training_leaves_is_loaded_and_trained_on(base: Path, tmp_path: Path, wide: Image.Image) -> None:
    vision_adapter(tmp_path / "tuned", 1, resampler=True)
    loaded, plain = MiniCPMBackbone.load(tmp_path / "tuned"), MiniCPMBackbone.load(tmp_path)
    request = Request(wide, whole(Aspect.QUALITY))
    assert not torch.allclose(loaded.encode([request])[0], plain.encode([request])[0], atol=1e-2)

    begun = MiniCPMBackbone.for_training(tmp_path / "tuned")
    assert begun.model.resampler.query.dtype == torch.float32
    assert begun.parts["language"].init_from is None
    part = begun.parts["vision"]
    assert part.init_from == tmp_path / "tuned" / VISION_ADAPTER_FOLDER
    PeftModel.from_pretrained(part.module, part.init_from)
    assert close(begun.encode([request]), loaded.encode([request]))
    assert {part.file for part in begun.parts.values()} == {
        VISION_ADAPTER_FOLDER,
        RESAMPLER_FILE,
        LANGUAGE_ADAPTER_FOLDER,
    }
    (tmp_path / "tuned" / RESAMPLER_FILE).write_text("nothing")
    with pytest.raises(WeightsError, match=r"resampler\.safetensors is damaged, or of another base"):
        MiniCPMBackbone.load(tmp_path / "tuned")
