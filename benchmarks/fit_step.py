"""A step of predictor training, from the cache and the paper's way: `python benchmarks/fit_step.py`.

The paper's way forwards the frozen MLLM over every conversation of the batch, makes its logits over the whole
vocabulary and lets W_proj read these. The predictor has the paper's sizes, and the same batch in all three.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from m3agiqa import Aspect, Rating  # noqa: E402
from m3agiqa.backbones.base import Request  # noqa: E402
from m3agiqa.backbones.loading import load_backbone  # noqa: E402
from m3agiqa.checkpoint.card import find_checkpoint  # noqa: E402
from m3agiqa.conversation import Conversation  # noqa: E402
from m3agiqa.predictor.config import PredictorConfig  # noqa: E402
from m3agiqa.predictor.model import Predictor  # noqa: E402
from training.stages.hidden_cache import Entry, HiddenCache  # noqa: E402

PICTURES = sorted((ROOT / "annotation" / "ui" / "assess" / "examples").glob("*.webp"))
PROMPT = "a lighthouse on a cliff at dusk, calm sea, oil painting"
DESCRIPTION = (
    "The picture is sharp and evenly lit, with clean edges along the cliff and a soft sky. The composition "
    "leads the eye to the tower, though the texture of the rocks is a little too smooth."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8, help="conversations a step")
    parser.add_argument("--steps", type=int, default=5, help="steps to time, after one to warm up")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    backbone = load_backbone("nano", find_checkpoint("nano"))
    told = Conversation.open(Aspect.QUALITY, PROMPT).describe(DESCRIPTION)
    images = [Image.open(path).convert("RGB").resize((512, 512)) for path in PICTURES]
    requests = [Request(images[i % len(images)], (told,)) for i in range(args.batch)]
    head, mos = backbone.head.float(), torch.rand(args.batch) * 4 + 1

    with tempfile.TemporaryDirectory() as folder:
        cache = HiddenCache(Path(folder))
        keys = [str(i) for i in range(args.batch)]
        entries = [Entry(k, k, Aspect.QUALITY, "told", None, PROMPT, DESCRIPTION, Rating.GOOD) for k in keys]
        cache.add(zip(entries, backbone.encode(requests), strict=True))

        def cached() -> tuple[Tensor, Tensor]:
            return padded([cache.states([key])[key] for key in keys])

        def from_mllm() -> tuple[Tensor, Tensor]:
            hidden, lengths = padded(backbone.encode(requests))
            return hidden @ head.T, lengths

        hidden_size, vocab_size = backbone.hidden_size, backbone.vocab_size
        ways = {
            "hidden states from the cache": (PredictorConfig(hidden_size), cached, None),
            "the same, W_proj over the vocabulary": (
                PredictorConfig(vocab_size, projection="vocab"),
                cached,
                head,
            ),
            "the paper's way": (PredictorConfig(vocab_size, projection="vocab"), from_mllm, None),
        }
        seconds = {
            name: timed(Predictor(shape), read, mos, used, args.steps)
            for name, (shape, read, used) in ways.items()
        }
        length = cached()[0].shape[1]

    print(f"nano, {args.batch} conversations of {length} positions a step, {args.threads} threads")
    slowest = seconds["the paper's way"]
    for name, value in seconds.items():
        print(f"{name:38} {value:7.2f} s a step, {slowest / value:5.1f} times as fast as the paper's way")
    for name, width in (("hidden states", hidden_size), ("logits", vocab_size)):
        print(f"cache of {name:13}, 16 bit {length * width * 2 / 1e6:9.2f} MB a sample")


def padded(states: list[Tensor]) -> tuple[Tensor, Tensor]:
    """[B, L, d] in 32 bit, and lengths."""
    lengths = torch.tensor([len(each) for each in states])
    return torch.nn.utils.rnn.pad_sequence(states, batch_first=True).float(), lengths


def timed(
    predictor: Predictor,
    read: Callable[[], tuple[Tensor, Tensor]],
    mos: Tensor,
    head: Tensor | None,
    steps: int,
) -> float:
    """Median seconds of a step: reading the batch, forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(predictor.parameters(), 1e-5)
    found = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        states, lengths = read()
        loss = F.mse_loss(predictor(states, lengths, head), mos)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


if __name__ == "__main__":
    main()
