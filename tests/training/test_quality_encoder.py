"""The quality encoder learns from scores of images, and resumes as if it had never stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFilter
from tiny_nano import tiny_vision
from torch.nn import functional as F

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.nano.efficientnet_lite import EfficientNetLite0, SameConv, views
from m3agiqa.backbones.nano.quality_encoder import ENCODED_ASPECTS, QualityEncoder, early_maps, folded
from m3agiqa.samples import Sample
from training.nano import fit_quality_encoder
from training.nano.fit_quality_encoder import EncoderConfig, cached_maps, learned_weights

CONFIG = EncoderConfig(epochs=2, batch=4)


class Encoder:
    """What fitting needs of an ImageEncoder."""

    def __init__(self, vision: Callable[[], EfficientNetLite0] = tiny_vision) -> None:
        torch.manual_seed(0)
        self.vision = vision().eval().requires_grad_(False)
        for module in self.vision.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)  # else nothing is left at the end of the stages
        self.quality_encoder = QualityEncoder(self.vision).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Eight noisy images with good scores and eight smooth ones with bad ones; one has no score."""
    folder, made = tmp_path_factory.mktemp("images"), []
    for i in range(16):
        image = Image.effect_noise((260, 300), 90).convert("RGB")
        (image if i % 2 else image.filter(ImageFilter.GaussianBlur(4))).save(folder / f"{i}.png")
        mos = {} if i == 15 else {Aspect.QUALITY: 4.5 if i % 2 else 1.5}
        made.append(Sample(str(i), folder / f"{i}.png", mos=mos, split="train", source="noise"))
    return made


@pytest.mark.parametrize("pointwise", [True, False])
def test_a_folded_convolution_does_what_it_did_with_its_normalization(pointwise: bool) -> None:
    conv = torch.nn.Conv2d(6, 8, 1, bias=False) if pointwise else SameConv(6, 6, 3, 2, groups=6)
    norm = torch.nn.BatchNorm2d(conv.out_channels).eval()
    for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        values.copy_(torch.rand(conv.out_channels) + 0.5)
    x = torch.randn(2, 6, 9, 9)
    assert torch.allclose(folded(conv, norm)(x), norm(conv(x)), atol=1e-5)
    assert all(p.requires_grad == pointwise for p in folded(conv, norm).parameters())


def test_folded_stages_do_what_the_published_ones_do() -> None:
    encoder = Encoder(EfficientNetLite0)
    shown = views([Image.effect_noise((300, 300), 80).convert("RGB")])
    stages = encoder.vision(shown.whole)
    x = early_maps(stages)
    for block in encoder.quality_encoder.blocks:
        x = block(x)
    assert torch.allclose(F.relu6(encoder.quality_encoder.head(x)), stages[-1], atol=1e-4)


def test_unfitted_scores_are_0() -> None:
    encoder = Encoder()
    shown = views([Image.new("RGB", (300, 300)), Image.effect_noise((600, 600), 80).convert("RGB")])
    windows = [early_maps(encoder.vision(each)) for each in shown.windows]
    scores = encoder.quality_encoder(early_maps(encoder.vision(shown.whole)), windows)
    assert torch.equal(scores, torch.zeros(2, len(ENCODED_ASPECTS)))


def interrupted_at_the_end(steps: Iterator[int]) -> Callable:
    """The loss, until there is no further step."""
    loss = fit_quality_encoder._Loss.__call__

    def one_step(*args: object) -> torch.Tensor:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return loss(*args)

    return one_step


def test_it_learns_what_was_scored_and_resumes_as_if_it_had_not_stopped(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Encoder()
    published = {name: value.clone() for name, value in whole.quality_encoder.state_dict().items()}
    fit_quality_encoder.fit_quality_encoder(whole, samples, tmp_path / "whole", CONFIG, seed=0)
    learned = learned_weights(whole.quality_encoder)
    after = whole.quality_encoder.state_dict()
    assert all(torch.equal(after[name], published[name]) for name in after.keys() - learned.keys())
    assert not torch.equal(after["blocks.0.expand.weight"], published["blocks.0.expand.weight"])
    assert not after["out.bias"][ENCODED_ASPECTS.index(Aspect.AUTHENTICITY)], "nobody scored it"
    maps = cached_maps(whole.vision, samples, tmp_path / "maps")
    with torch.inference_mode():
        scores = whole.quality_encoder(maps.whole[:, 0].float(), maps.windows[:, :4].float().unbind(0))
    quality = scores[:, ENCODED_ASPECTS.index(Aspect.QUALITY)]
    assert quality[1::2].mean() > quality[0::2].mean()

    steps = iter(range(len(samples) // CONFIG.batch + 1))
    monkeypatch.setattr(fit_quality_encoder._Loss, "__call__", interrupted_at_the_end(steps))
    with pytest.raises(KeyboardInterrupt):
        fit_quality_encoder.fit_quality_encoder(Encoder(), samples, tmp_path / "stopped", CONFIG, seed=0)
    monkeypatch.undo()
    resumed = Encoder()
    fit_quality_encoder.fit_quality_encoder(resumed, samples, tmp_path / "stopped", CONFIG, seed=0)
    for name, value in resumed.quality_encoder.state_dict().items():
        assert torch.equal(value, after[name]), name
