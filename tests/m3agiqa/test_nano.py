"""nano without its weights: its parts, and a tiny nano with random ones that is trained and adapted."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from tiny_nano import tiny_nano
from torch import Tensor, nn

from m3agiqa import Aspect, Rating
from m3agiqa.backbones.base import Delta, Generation, Request
from m3agiqa.backbones.nano import CONNECTOR_FILE, QUALITY_ENCODER_FILE, NanoBackbone
from m3agiqa.backbones.nano.connector import (
    GRID_TOKENS,
    VISUAL_TOKENS,
    Connector,
    ImageFeatures,
    gather_grid_cells,
)
from m3agiqa.backbones.nano.efficientnet_lite import (
    CHANNEL_GROUPS,
    FINE_PIXELS,
    N_STATISTICS,
    POINTWISE_LAYERS,
    STAGE_SETTINGS,
    WHOLE_PIXELS,
    EfficientNetLite0,
    statistics,
    views,
)
from m3agiqa.backbones.nano.grounded_text import SENTENCES, FirstEstimate
from m3agiqa.backbones.nano.language_model import END_OF_TURN
from m3agiqa.backbones.nano.nss_features import N_APPEARANCE
from m3agiqa.backbones.nano.packed_decoder import ATTENTION_BLOCK, PackedDecoder, new_cache
from m3agiqa.conversation import Conversation
from m3agiqa.errors import InputError


def test_views_are_the_whole_image_at_two_resolutions() -> None:
    image = Image.new("RGB", (1000, 600), "black")
    image.paste("white", (500, 0, 1000, 300))  # the upper right quarter
    shown = views([image, image.rotate(180)])
    assert shown.whole.shape == (2, 3, WHOLE_PIXELS, WHOLE_PIXELS) and shown.fine.shape == (
        2,
        3,
        FINE_PIXELS,
        FINE_PIXELS,
    )
    assert shown.appearance.shape == (2, N_APPEARANCE)
    for view in (shown.whole, shown.fine):
        half = view.shape[-1] // 2
        quarters = [view[:, :, :half, :half], view[:, :, :half, half:], view[:, :, half:, :half]]
        first, turned = torch.stack([quarter.mean(dim=(1, 2, 3)) for quarter in quarters], dim=1)
        assert first.argmax() == 1 and turned.argmax() == 2


def test_the_fine_view_keeps_what_the_whole_has_lost() -> None:
    fine = Image.effect_noise((448, 448), 120).convert("RGB")
    shown = views([fine, fine.filter(ImageFilter.GaussianBlur(1.2))])
    lost = [(view[0].std() / view[1].std()).item() for view in (shown.whole, shown.fine)]
    assert lost[1] > 1.4 * lost[0]


def test_gather_keeps_places_in_order() -> None:
    def maps(side: int) -> list[Tensor]:
        channels = [*(cout for *_, cout in STAGE_SETTINGS), CHANNEL_GROUPS[0]]
        return [torch.zeros(1, c, side, side) for c in channels]

    whole, fine = maps(7), maps(14)
    whole[-1][0, 0, 2, 5] = 1  # row 2, column 5
    fine[-1][0, 1, -1, -1] = 1  # the last corner
    seen = gather_grid_cells(whole, fine)[0]
    assert seen.shape == (GRID_TOKENS, sum(CHANNEL_GROUPS))
    assert seen[:, 0].nonzero().flatten().tolist() == [2 * 7 + 5]
    assert seen[:, 1].nonzero().flatten().tolist() == [GRID_TOKENS - 1]


def test_statistics_are_of_each_channel_of_the_first_stages() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, cout, 9, 9, generator=generator) for *_, cout in STAGE_SETTINGS]
    found = statistics(maps)
    assert found.shape == (2, N_STATISTICS)
    assert torch.allclose(found[1, 3], maps[0][1, 3].mean(), atol=1e-5)
    assert torch.allclose(found[1, 16 + 3].exp(), maps[0][1, 3].std() + 1e-3, atol=1e-5)
    maps[-1] += 1
    assert torch.equal(statistics(maps), found), "the last stage knows too much of what is shown"


def seen_of(count: int) -> ImageFeatures:
    places = torch.rand(count, GRID_TOKENS, sum(CHANNEL_GROUPS))
    return ImageFeatures(
        places,
        torch.randn(count, 2 * N_STATISTICS),
        torch.randn(count, N_APPEARANCE),
        torch.zeros(count, 11),
        torch.zeros(count, 2),
    )


def opinionated(hidden_size: int) -> Connector:
    """A connector whose opinions are the first two statistics."""
    connector = Connector(hidden_size)
    connector.opinions.weight[:2] = N_STATISTICS**0.5 * torch.eye(2)
    return connector.eval()


def test_connector_gives_grid_cells_and_quality_logits() -> None:
    torch.manual_seed(0)
    connector, seen = opinionated(16), seen_of(2)
    connector.opinions.encoder_weight[0] = 1.0
    connector.opinions.gate_bias.fill_(1.0)
    tokens = connector(seen)
    assert tokens.shape == (2, VISUAL_TOKENS, 16)

    def moved(changed: ImageFeatures) -> list[int]:
        return (connector(changed) - tokens).abs().amax(dim=(0, 2)).gt(1e-6).nonzero().flatten().tolist()

    place, statistic, other = seen.grid_cells.clone(), seen.statistics.clone(), seen.statistics.clone()
    place[:, 7] += torch.rand(sum(CHANNEL_GROUPS))
    statistic[:, 1] += 0.5
    other[:, 2:] += 0.5
    assert moved(seen._replace(grid_cells=place)) == [7]
    assert moved(seen._replace(statistics=statistic)) == [GRID_TOKENS + 1]
    assert moved(seen._replace(encoder_scores=torch.ones(2, 2))) == [GRID_TOKENS]
    assert moved(seen._replace(statistics=other)) == [], "nothing is known of an image beside opinions"


def test_a_quality_logit_can_be_read_off_its_token_after_any_norm() -> None:
    torch.manual_seed(0)
    connector, seen = opinionated(64), seen_of(41)
    seen.statistics[:, 0] = torch.linspace(-4, 4, 41)
    tokens = connector(seen)[:, GRID_TOKENS]
    read = nn.functional.rms_norm(tokens, (64,)) @ connector.compass[1, 0]
    assert (read.diff() > 0).all()
    assert torch.allclose(tokens.norm(dim=-1), tokens[0].norm(), rtol=1e-3)


def test_quality_logits_are_less_sure_in_training() -> None:
    connector, seen = opinionated(16), seen_of(3)
    assert torch.equal(connector(seen), connector(seen))
    connector.train()
    first, second = connector(seen), connector(seen)
    assert torch.equal(first[:, :GRID_TOKENS], second[:, :GRID_TOKENS])
    assert not torch.allclose(first[:, GRID_TOKENS:], second[:, GRID_TOKENS:], atol=1e-3)


# --- a tiny nano ------------------------------------------------------------------------------


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
    monkeypatch.setattr("m3agiqa.backbones.nano.model.MAX_NEW_TOKENS", 6)
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
    adapted = get_peft_model(vision, LoraConfig(r=2, target_modules=POINTWISE_LAYERS))
    chosen = [m.base_layer for m in adapted.modules() if hasattr(m, "base_layer")]
    assert {(m.kernel_size, m.groups) for m in chosen} == {((1, 1), 1)}
    assert len(chosen) == shapes.count(((1, 1), 1))


def test_answers_are_what_the_assistant_says(picture: Image.Image) -> None:
    nano = tiny_nano()
    text = Conversation.open(Aspect.QUALITY, None).describe("Sharp.")
    answers = nano.answers([Request(picture, (text, text.rate(Rating.GOOD)))])
    said = nano.chat.tokenizer.decode(answers.ids)
    assert said == f"Sharp.{END_OF_TURN}Sharp.{END_OF_TURN}good{END_OF_TURN}"
    assert answers.turn.tolist() == [1] * 14 + [2] * 5
    assert answers.logits.shape == (19, nano.vocab_size)


@pytest.mark.parametrize("seen", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(picture: Image.Image, seen: bool) -> None:
    def run(checkpointing: bool) -> tuple[list[Tensor], int]:
        nano, calls = tiny_nano(), []
        tuned = [nano.image_encoder.connector.requires_grad_()]
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
    shown = views([picture])
    both = NanoBackbone.load(tmp_path / "both")
    language = NanoBackbone.load(tmp_path / "language")
    assert torch.equal(
        language.image_encoder.features(shown).grid_cells, base.image_encoder.features(shown).grid_cells
    )
    for found, plain in zip(
        both.image_encoder.features(shown)[:2], base.image_encoder.features(shown)[:2], strict=True
    ):
        assert (found - plain).norm() > 0.01 * plain.norm()
    assert not any("lora" in name for name, _ in both.image_encoder.vision.named_parameters()), (
        "merged: as fast as without"
    )


def test_without_a_language_adapter_the_language_model_is_the_base(
    base: NanoBackbone, tmp_path: Path
) -> None:
    write_adapters(tmp_path / "vision", 1, ("vision",))
    request = Request(None, whole(Aspect.QUALITY, Aspect.CORRESPONDENCE))
    loaded = NanoBackbone.load(tmp_path / "vision").encode([request])
    for states, expected in zip(loaded, base.encode([request]), strict=True):
        assert torch.allclose(states, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("filled", "first"), [("left", 9), ("right", 9), ("nowhere", 9), ("left", ATTENTION_BLOCK + 9)]
)
def test_the_quick_decoder_is_the_language_model(filled: str, first: int) -> None:
    llm = tiny_nano().llm
    decoder = PackedDecoder(copy.deepcopy(llm))
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(3, first, dtype=torch.long)
    if filled == "left":
        mask[0, : first - 5] = 0
    elif filled == "right":
        mask[1, 5:] = 0
    slow, quick = new_cache(), new_cache()
    for length in (first, 1, 4, 1):  # the image, a token, a question, a token
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
        states = PackedDecoder(copy.deepcopy(llm))(embedded, new_cache(), mask, mask.cumsum(1) - 1).float()
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

    def test_rows_keep_their_numbers_when_generated(self, folder: Path, picture: Image.Image) -> None:
        quality, correspondence = Aspect.QUALITY, Aspect.CORRESPONDENCE
        request = Request(picture, opened(correspondence, quality))
        told = list(NanoBackbone.load(folder).describe([request]))
        spoken = {said.row: said for said in told if isinstance(said, Generation)}
        for row, aspect in enumerate((correspondence, quality)):
            alone = list(NanoBackbone.load(folder / aspect).describe([Request(picture, opened(aspect))]))
            (expected,) = (said for said in alone if isinstance(said, Generation))
            assert spoken[row].description == expected.description
            assert close([spoken[row].hidden], [expected.hidden])
            streamed = "".join(said.text for said in told if isinstance(said, Delta) and said.row == row)
            assert streamed == "".join(said.text for said in alone if isinstance(said, Delta))

    def test_base_weights_are_in_memory_once(self, folder: Path) -> None:
        backbones = NanoBackbone.load(folder).backbones.values()

        for part in (lambda nano: nano.llm, lambda nano: nano.image_encoder.vision):
            first, second = (
                {w.data_ptr() for name, w in part(nano).named_parameters() if "lora" not in name}
                for nano in backbones
            )
            assert first == second and first

    def test_an_aspect_without_adapters_is_named(self, folder: Path, picture: Image.Image) -> None:
        with pytest.raises(InputError, match="for quality, correspondence, not for authenticity"):
            NanoBackbone.load(folder).encode([Request(picture, whole(*Aspect))])


def test_the_quality_encoder_is_read_where_a_checkpoint_has_one(
    base: NanoBackbone, tmp_path: Path, picture: Image.Image
) -> None:
    folder = tmp_path / "learned"
    write_adapters(folder, 1)
    connector = load_file(folder / CONNECTOR_FILE)
    for name in ("encoder_weight", "gate_weight", "gate_bias"):
        del connector[f"opinions.{name}"]  # as in checkpoints of nano 0.4.0
    save_file(connector, folder / CONNECTOR_FILE)
    without = NanoBackbone.load(folder)
    assert not without.image_encoder.connector.quality_regressor.encoder_weight.any()
    fitted = {"opinions.encoder_weight": torch.ones(2), "opinions.gate_bias": torch.tensor(1.0)}
    save_file(connector | fitted, folder / CONNECTOR_FILE)
    save_file({"out.bias": torch.tensor([1.0, 5.0, -2.0])}, folder / QUALITY_ENCODER_FILE)
    fitted_one = NanoBackbone.load(folder)
    logits = [nano.image_encoder.encode([picture]).quality_logits for nano in (without, fitted_one)]
    assert torch.allclose(logits[1] - logits[0], torch.tensor([[0.5, -1.0]])), (
        "quality and authenticity, by half"
    )
    fitted_one.image_encoder.connector.quality_regressor.gate_bias.zero_()
    fitted_one.image_encoder.quality_encoder = torch.nn.Module()  # which cannot be called, and need not be
    assert torch.equal(fitted_one.image_encoder.encode([picture]).quality_logits, logits[0])


def test_an_image_is_seen_once_however_often_it_is_asked_about(
    base: NanoBackbone, tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapters(tmp_path / "learned", 1)
    nano = NanoBackbone.load(tmp_path / "learned")
    seen: list[int] = []
    see = nano.image_encoder.features
    monkeypatch.setattr(
        nano.image_encoder, "features", lambda shown, stop: seen.append(len(shown.whole)) or see(shown)
    )
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


def test_grounded_descriptions_are_streamed_in_sentences_and_read_as_any_other_text(
    base: NanoBackbone, picture: Image.Image
) -> None:
    base.first_estimates = {aspect: FirstEstimate(3.0, 0.5) for aspect in Aspect}
    opened = tuple(Conversation.open(aspect, "a red ball on the ground") for aspect in Aspect)
    requests = [Request(picture, opened), Request(picture.rotate(90), opened[:2])]
    streamed = [""] * 5
    done: dict[int, Generation] = {}
    for each in base.describe(requests):
        if isinstance(each, Delta):
            streamed[each.row] += each.text
        else:
            done[each.row] = each
    conversations = [*opened, *opened[:2]]
    for row, conversation in enumerate(conversations):
        sentences = re.split(r"(?<=\.) ", done[row].description)
        lexicon = {s.text for s in SENTENCES if s.aspect is conversation.aspect and "{" not in s.text}
        assert sentences[0] in lexicon and 1 <= len(sentences) <= 3
        assert streamed[row] == done[row].description
        described = conversation.describe(done[row].description)
        (states,) = base.encode([Request(requests[row // 3].image, (described,))])
        assert torch.allclose(done[row].hidden.float(), states.float(), atol=1e-4)
