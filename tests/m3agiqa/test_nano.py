"""The parts of nano that need no weights."""

from __future__ import annotations

import torch
from PIL import Image, ImageFilter

from m3agiqa.backbones.nano.connector import PLACE_TOKENS, VISUAL_TOKENS, Connector, gather
from m3agiqa.backbones.nano.matching import Matcher
from m3agiqa.backbones.nano.vision import DETAIL_GRID, GROUPS, VIEW, views


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
