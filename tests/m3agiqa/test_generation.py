"""Speaking several conversations at once, whatever the machine's kernels make of the padding."""

from pathlib import Path

import pytest
import torch
from hf_models import tiny_folder
from PIL import Image
from tiny_minicpm import tiny_model, tokenizer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

from m3agiqa import Aspect
from m3agiqa.backbones.base import Backbone, Generation, Request
from m3agiqa.backbones.hf import backbone as hf
from m3agiqa.backbones.loading import load_backbone
from m3agiqa.backbones.minicpm import MiniCPMBackbone
from m3agiqa.backbones.minicpm import backbone as minicpm
from m3agiqa.backbones.minicpm.slicing import Slicing
from m3agiqa.conversation import Conversation

TOKENS = 5
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select"}


@pytest.fixture(scope="module", params=["minicpm", "hf"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    if request.param == "hf":
        folder = tiny_folder("smolvlm", tmp_path_factory.mktemp("smolvlm"))
        return load_backbone(f"hf:{folder}", Path("there-is-no-checkpoint"))
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer())
    return MiniCPMBackbone(tiny_model(), words, Slicing(scale_resolution=112))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (hf, minicpm):
        monkeypatch.setattr(module, "MAX_NEW_TOKENS", TOKENS)


def requests(picture: Image.Image, *aspects: Aspect) -> list[Request]:
    """Images of which one takes more places than the other."""
    opened = tuple(Conversation.open(aspect, "a ball") for aspect in aspects)
    return [Request(picture.resize(size), opened) for size in ((60, 60), (160, 80))]


def spoken(backbone: Backbone, asked: list[Request]) -> list[Generation]:
    said = [each for each in backbone.describe(asked) if isinstance(each, Generation)]
    return sorted(said, key=lambda each: each.row)


def nothing_seen_is_nan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention as some GPU kernels have it: plain softmax, which is NaN where every key is hidden."""
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * (scale or query.shape[-1] ** -0.5)
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool)
    if is_causal:
        seen = seen.tril()
    if attn_mask is not None:
        seen = seen & attn_mask
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value


def test_padding_that_sees_nothing_spoils_nothing(
    backbone: Backbone, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(picture, *Aspect)
    usual = spoken(backbone, asked)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", nothing_seen_is_nan)
    strict = spoken(backbone, asked)
    assert [each.description for each in strict] == [each.description for each in usual]
    for one, other in zip(strict, usual, strict=True):
        torch.testing.assert_close(one.hidden, other.hidden, atol=1e-3, rtol=0)


class HostReads(TorchDispatchMode):
    """Counts what makes the machine wait for its GPU."""

    count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        by_mask = op.name() == "aten::index.Tensor" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.count += by_mask or op.name() in READS
        return op(*args, **(kwargs or {}))


def test_more_rows_are_not_waited_for_more_often(
    backbone: Backbone, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step waits for the tokens of all rows at once."""

    def waits(tokens: int, *aspects: Aspect) -> int:
        for module in (hf, minicpm):
            monkeypatch.setattr(module, "MAX_NEW_TOKENS", tokens)
        with HostReads() as reads:
            spoken(backbone, requests(picture, *aspects))
        return reads.count

    def waits_of_a_step(*aspects: Aspect) -> int:
        return waits(TOKENS + 1, *aspects) - waits(TOKENS, *aspects)

    assert waits_of_a_step(*Aspect) == waits_of_a_step(Aspect.QUALITY) <= 2
