"""nano without its weights: its parts, and a tiny nano with random ones that is trained and adapted."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from m3agiqa import Aspect, Rating
from m3agiqa.backbones.base import Delta, Request, Spoken
from m3agiqa.backbones.nano import CONNECTOR_FILE, NanoBackbone
from m3agiqa.backbones.nano.connector import PLACE_TOKENS, VISUAL_TOKENS, Connector, gather
from m3agiqa.backbones.nano.decoder import Decoder
from m3agiqa.backbones.nano.language import END, new_cache
from m3agiqa.backbones.nano.matching import Matcher
from m3agiqa.backbones.nano.vision import DETAIL_GRID, GROUPS, POINTWISE, VIEW, EfficientNetLite0, views
from m3agiqa.conversation import Conversation
from m3agiqa.errors import InputError


def test_views_are_the_whole_image_and_its_parts() -> None:
    image = Image.new("RGB", (1000, 600), "black")
    image.paste("white", (500, 0, 1000, 300))  # the upper right quarter
    shown = views(image)
    assert shown.shape == (1 + DETAIL_GRID**2, 3, VIEW, VIEW)
    assert shown[1:].mean(dim=(1, 2, 3)).argmax() == 1
    assert (shown[2] == shown[2].max()).float().mean() > 0.9


def test_details_keep_what_the_whole_view_has_lost() -> None:
    fine = Image.effect_noise((1000, 1000), 120).convert("RGB")
    soft = fine.filter(ImageFilter.GaussianBlur(1.2))

    def contrast(image: Image.Image) -> torch.Tensor:
        return views(image).std(dim=(1, 2, 3))

    lost = contrast(soft) / contrast(fine)
    assert lost[0] > 1.5 * lost[1:].max()


def test_gather_keeps_places_in_order() -> None:
    maps = torch.zeros(1, 1 + DETAIL_GRID**2, 7, 7, 3)
    maps[0, 0, 2, 5, 0] = 1  # row 2, column 5 of the whole
    maps[0, 4, -1, -1, 1] = 1  # a corner of the last detail
    places = gather(maps)[0]
    assert places.shape == (PLACE_TOKENS, 3)
    assert places[:, 0].nonzero().flatten().tolist() == [2 * 7 + 5]
    assert places[:, 1].nonzero().flatten().tolist() == [PLACE_TOKENS - 1]


def test_a_prompt_whose_words_are_seen_matches_better() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(50, 32, generator=generator) * 0.1 + 0.1  # with something common to all
    matcher = Matcher(embeddings, worst=0, best=1)
    places = embeddings[torch.randint(2, 10, (PLACE_TOKENS,), generator=generator)]
    seen, unseen = list(range(2, 10)), list(range(20, 28))
    assert matcher.match(places, seen) > matcher.match(places, unseen) + 1
    towards = embeddings[1] - embeddings[0]
    assert matcher.shift(places, seen) @ towards > matcher.shift(places, unseen) @ towards
    assert not matcher.shift(places, []).any(), "no words, no shift"


def test_connector_sees_places_and_sums_them_up() -> None:
    torch.manual_seed(0)
    connector = Connector(16).eval()
    features = torch.rand(2, PLACE_TOKENS, sum(GROUPS))
    tokens = connector(features)
    assert tokens.shape == (2, VISUAL_TOKENS, 16)
    changed = features.clone()
    changed[:, 7] += torch.rand(sum(GROUPS))
    moved = (connector(changed) - tokens).abs().amax(dim=(0, 2))
    assert moved[:PLACE_TOKENS].nonzero().flatten().tolist() == [7]
    assert (moved[PLACE_TOKENS:] > 0).all()


# --- a tiny nano ------------------------------------------------------------------------------


def tiny_nano() -> NanoBackbone:
    """Bytes are the tokens; all weights are random, and the same every time."""
    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|im_start|>", END]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=marks)
    config = LlamaConfig(
        vocab_size=len(letters) + len(marks),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
        attn_implementation="m3agiqa_grouped",
    )
    llm = LlamaForCausalLM(config).eval().requires_grad_(False)
    nano = NanoBackbone(EfficientNetLite0().eval().requires_grad_(False), llm, fast)
    nano.connector.eval()
    return nano


def write_adapters(folder: Path, seed: int, parts: tuple[str, ...] = ("language", "vision")) -> None:
    """A connector and adapters as fine-tuning leaves them, with random weights."""
    folder.mkdir(parents=True)
    nano = tiny_nano()
    torch.manual_seed(seed)
    save_file(Connector(nano.hidden_size).state_dict(), folder / CONNECTOR_FILE)
    for name in parts:
        part = nano.parts[name]
        lora = LoraConfig(r=2, lora_alpha=4, target_modules=part.lora, init_lora_weights=False)
        get_peft_model(part.module, lora).save_pretrained(folder / part.file)


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> NanoBackbone:
    """What checkpoints are loaded onto."""
    nano = tiny_nano()
    monkeypatch.setattr(
        NanoBackbone, "from_base", classmethod(lambda cls, progress=None: copy.deepcopy(nano))
    )
    monkeypatch.setattr("m3agiqa.backbones.nano.backbone.MAX_NEW_TOKENS", 6)
    return nano


def opened(*aspects: Aspect) -> tuple[Conversation, ...]:
    return tuple(Conversation.open(aspect, "a ball") for aspect in aspects)


def whole(*aspects: Aspect) -> tuple[Conversation, ...]:
    return tuple(c.describe(f"About its {c.aspect}.").rate(Rating.GOOD) for c in opened(*aspects))


def close(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, expected, strict=True))


def test_lora_goes_into_the_pointwise_convolutions() -> None:
    vision = EfficientNetLite0()
    shapes = [(m.kernel_size, m.groups) for m in vision.modules() if isinstance(m, nn.Conv2d)]
    adapted = get_peft_model(vision, LoraConfig(r=2, target_modules=POINTWISE))
    chosen = [m.base_layer for m in adapted.modules() if hasattr(m, "base_layer")]
    assert {(m.kernel_size, m.groups) for m in chosen} == {((1, 1), 1)}
    assert len(chosen) == shapes.count(((1, 1), 1))


def test_answers_are_what_the_assistant_says(picture: Image.Image) -> None:
    nano = tiny_nano()
    text = Conversation.open(Aspect.QUALITY, None).describe("Sharp.")
    answers = nano.answers([Request(picture, (text, text.rate(Rating.GOOD)))])
    said = nano.chat.tokenizer.decode(answers.ids)
    assert said == f"Sharp.{END}Sharp.{END}good{END}"
    assert answers.turn.tolist() == [1] * 14 + [2] * 5
    assert answers.logits.shape == (19, nano.vocab_size)


@pytest.mark.parametrize("seen", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(picture: Image.Image, seen: bool) -> None:
    def run(checkpointing: bool) -> tuple[list[Tensor], int]:
        nano, calls = tiny_nano(), []
        tuned = [nano.connector.requires_grad_()]
        for name in ("vision", "language"):
            part = nano.parts[name]
            lora = LoraConfig(r=2, target_modules=part.lora, init_lora_weights=False)
            torch.manual_seed(1)
            tuned.append(get_peft_model(part.module, lora))
        nano.llm.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
        if checkpointing:
            nano.enable_gradient_checkpointing()
        request = Request(picture if seen else None, whole(*Aspect))
        answers = nano.answers([request, request])
        nn.functional.cross_entropy(answers.logits, answers.ids).backward()
        parameters = [p for module in tuned for p in module.parameters()]
        return [p.grad for p in parameters if p.grad is not None], len(calls)

    usual, calls = run(False)
    lean, calls_of_lean = run(True)
    assert (calls, calls_of_lean) == (2, 2), "prefix and rows; or rows, and rows again when going back"
    assert len(usual) == len(lean) and any(gradient.any() for gradient in usual)
    scale = max(gradient.abs().max() for gradient in usual)
    assert all(torch.allclose(a, b, atol=1e-4 * scale) for a, b in zip(usual, lean, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("seen", [True, False])
def test_inputs_follow_the_weights(picture: Image.Image, seen: bool, checkpointing: bool) -> None:
    """To another device, and to 16 bit, into which DeepSpeed puts all of them."""
    request = Request(picture if seen else None, whole(*Aspect))
    for place in ({"device": "meta"}, {"dtype": torch.bfloat16}):
        nano = tiny_nano()
        for part in nano.parts.values():
            part.module.to(**place)
        if checkpointing:
            nano.enable_gradient_checkpointing()
        answers = nano.answers([request, request])
        assert answers.logits.dtype == place.get("dtype", torch.float32)
        assert {tensor.device.type for tensor in answers} == {place.get("device", "cpu")}


def test_a_vision_adapter_changes_what_is_seen(
    base: NanoBackbone, tmp_path: Path, picture: Image.Image
) -> None:
    write_adapters(tmp_path / "both", 1)
    write_adapters(tmp_path / "language", 1, ("language",))
    pixels = views(picture)[None]
    both = NanoBackbone.load(tmp_path / "both")
    language = NanoBackbone.load(tmp_path / "language")
    assert torch.equal(language.features(pixels), base.features(pixels))
    assert not torch.allclose(both.features(pixels), base.features(pixels), atol=1e-2)
    assert not any("lora" in name for name, _ in both.vision.named_parameters()), "merged: as fast as without"


def test_without_a_language_adapter_the_language_model_is_the_base(
    base: NanoBackbone, tmp_path: Path
) -> None:
    write_adapters(tmp_path / "vision", 1, ("vision",))
    request = Request(None, whole(Aspect.QUALITY, Aspect.CORRESPONDENCE))
    loaded = NanoBackbone.load(tmp_path / "vision").encode([request])
    for states, expected in zip(loaded, base.encode([request]), strict=True):
        assert torch.allclose(states, expected, atol=1e-4)


@pytest.mark.parametrize("filled", ["left", "right", "nowhere"])
def test_the_quick_decoder_is_the_language_model(filled: str) -> None:
    llm = tiny_nano().llm
    decoder = Decoder(copy.deepcopy(llm))
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(3, 9, dtype=torch.long)
    if filled == "left":
        mask[0, :4] = 0
    elif filled == "right":
        mask[1, 5:] = 0
    slow, quick = new_cache(), new_cache()
    for length in (9, 1, 4, 1):  # the image, a token, a question, a token
        embedded = torch.randn(3, length, llm.config.hidden_size, generator=generator)
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -length:]
        with torch.inference_mode():
            expected = llm.model(
                inputs_embeds=embedded, past_key_values=slow, attention_mask=mask, position_ids=positions
            ).last_hidden_state
            states = decoder(embedded, quick, mask, positions)
        own = mask[:, -length:].bool()
        assert torch.allclose(states[own], expected[own], atol=1e-4)
        assert torch.allclose(decoder.head(states), llm.lm_head(states), atol=1e-4)
        mask = torch.cat([mask, torch.ones(3, 4 if length == 1 else 1, dtype=torch.long)], dim=1)


def test_the_quick_decoder_in_16_bit_rounds_only(base: NanoBackbone) -> None:
    llm = base.llm.bfloat16()
    embedded = torch.randn(
        3, 20, llm.config.hidden_size, generator=torch.Generator().manual_seed(1)
    ).bfloat16()
    mask = torch.ones(3, 20, dtype=torch.long)
    with torch.inference_mode():
        expected = llm.model(inputs_embeds=embedded).last_hidden_state.float()
        states = Decoder(copy.deepcopy(llm))(embedded, new_cache(), mask, mask.cumsum(1) - 1).float()
    assert torch.nn.functional.cosine_similarity(states, expected, dim=-1).min() > 0.999


class TestPerAspect:
    """A folder with a sub-folder of adapters for each aspect."""

    @pytest.fixture
    def folder(self, base: NanoBackbone, tmp_path: Path) -> Path:
        write_adapters(tmp_path / Aspect.QUALITY, 1)
        write_adapters(tmp_path / Aspect.CORRESPONDENCE, 2, ("language",))
        return tmp_path

    def test_each_conversation_is_read_by_its_own(self, folder: Path, picture: Image.Image) -> None:
        quality, correspondence = Aspect.QUALITY, Aspect.CORRESPONDENCE
        other = picture.transpose(Image.Transpose.ROTATE_90)
        conversations = whole(correspondence, quality)
        requests = [Request(picture, conversations), Request(other, conversations[1:])]
        states = NanoBackbone.load(folder).encode(requests)
        first, other_voice = NanoBackbone.load(folder / correspondence).encode([requests[0]])
        _, second, third = NanoBackbone.load(folder / quality).encode(requests)
        assert close(states, [first, second, third])
        assert not close([second], [other_voice])

    def test_rows_keep_their_numbers_when_spoken(self, folder: Path, picture: Image.Image) -> None:
        quality, correspondence = Aspect.QUALITY, Aspect.CORRESPONDENCE
        request = Request(picture, opened(correspondence, quality))
        told = list(NanoBackbone.load(folder).describe([request]))
        spoken = {said.row: said for said in told if isinstance(said, Spoken)}
        for row, aspect in enumerate((correspondence, quality)):
            alone = list(NanoBackbone.load(folder / aspect).describe([Request(picture, opened(aspect))]))
            (expected,) = (said for said in alone if isinstance(said, Spoken))
            assert spoken[row].description == expected.description
            assert close([spoken[row].hidden], [expected.hidden])
            streamed = "".join(said.text for said in told if isinstance(said, Delta) and said.row == row)
            assert streamed == "".join(said.text for said in alone if isinstance(said, Delta))

    def test_base_weights_are_in_memory_once(self, folder: Path) -> None:
        backbones = NanoBackbone.load(folder).backbones.values()

        def places(kind: str) -> list[set[int]]:
            return [
                {p.data_ptr() for n, p in getattr(b, kind).named_parameters() if "lora" not in n}
                for b in backbones
            ]

        for kind in ("llm", "vision"):
            first, second = places(kind)
            assert first == second and first

    def test_an_aspect_without_adapters_is_named(self, folder: Path, picture: Image.Image) -> None:
        with pytest.raises(InputError, match="for quality, correspondence, not for authenticity"):
            NanoBackbone.load(folder).encode([Request(picture, whole(*Aspect))])


def test_an_image_is_seen_once_however_often_it_is_asked_about(
    base: NanoBackbone, tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapters(tmp_path / "learned", 1)
    nano = NanoBackbone.load(tmp_path / "learned")
    seen: list[int] = []
    see = nano.visual_tokens
    monkeypatch.setattr(nano, "visual_tokens", lambda pixels: seen.append(len(pixels)) or see(pixels))
    first = nano.encode([Request(picture, whole(Aspect.QUALITY))])
    other = nano.encode([Request(picture.rotate(180), whole(Aspect.QUALITY))])
    again = nano.encode([Request(picture.copy(), whole(Aspect.QUALITY))])
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert seen == [1, 1]
    for angle in range(1, 9):
        nano.encode([Request(picture.rotate(angle), whole(Aspect.QUALITY))])
    nano.encode([Request(picture, whole(Aspect.QUALITY))])
    assert seen == [1] * 11, "and forgotten after some others"
