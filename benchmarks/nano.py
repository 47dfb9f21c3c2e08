"""nano against the published recipe, in one run: `python benchmarks/nano.py`.

The published recipe judges one aspect at a time: it sees the image, generates the description, then forwards
the whole conversation once more and hands its logits over the vocabulary to the predictor. Both ways speak
the same number of tokens with the same weights in the same precision.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from m3agiqa import Aspect, Assessment, Assessor, DescriptionDelta  # noqa: E402
from m3agiqa.backbones.nano import NanoBackbone  # noqa: E402
from m3agiqa.backbones.nano.model import NO_REPEAT_NGRAM  # noqa: E402
from m3agiqa.batch_scoring import BATCH_SIZE  # noqa: E402
from m3agiqa.conversation import Conversation  # noqa: E402
from m3agiqa.images import open_image  # noqa: E402
from m3agiqa.predictor.config import PredictorConfig  # noqa: E402
from m3agiqa.predictor.model import Predictor  # noqa: E402
from m3agiqa.ranking import ranked_as_assessed  # noqa: E402

PICTURES = sorted((ROOT / "annotation" / "ui" / "assess" / "examples").glob("*.webp"))
COMPARED, COMPARED_SIDE = 8, 1024  # images, and pixels a side
PROMPT = "a lighthouse on a cliff at dusk, calm sea, oil painting"


@dataclass(frozen=True)
class Run:
    """Seconds of one assessment, and the tokens of its three descriptions."""

    first_words: float
    all_done: float
    tokens: dict[Aspect, int]


def picture(number: int) -> Image.Image:
    """Another one for each number, as what has been seen before is remembered."""
    image = open_image(PICTURES[number % len(PICTURES)]).resize((512, 512))
    return image.rotate(10 * (number // len(PICTURES)))


def assess(assessor: Assessor, image: Image.Image) -> Run:
    """Our way, as the app does it."""
    started = time.perf_counter()
    first = 0.0
    for event in assessor.stream(image, PROMPT):
        now = time.perf_counter() - started
        if isinstance(event, DescriptionDelta):
            first = first or now
        if isinstance(event, Assessment):
            encode = assessor.backbone.chat.encode_text
            tokens = {aspect: len(encode(result.description)) for aspect, result in event.aspects.items()}
    return Run(first, now, tokens)


class Published:
    """The published recipe with nano's weights and the library's own language model."""

    def __init__(self, assessor: Assessor) -> None:
        self.backbone = _unpacked(assessor)
        head = self.backbone.head
        shapes = assessor.card.predictors
        self.predictors = {aspect: _over_vocabulary(shape, head) for aspect, shape in shapes.items()}

    @torch.inference_mode()
    def assess(self, image: Image.Image, tokens: dict[Aspect, int]) -> float:
        """Seconds for all aspects, one after another, with so many tokens each."""
        started = time.perf_counter()
        for aspect, count in tokens.items():
            self._judge(open_image(image), Conversation.open(aspect, PROMPT), count)
        return time.perf_counter() - started

    def _judge(self, image: Image.Image, conversation: Conversation, count: int) -> float:
        nano, chat = self.backbone, self.backbone.chat
        prefix, _ = nano._embed_prefix([image])
        asked = torch.cat([prefix, nano._embed(torch.tensor([chat.tokens(conversation).ids]))], dim=1)
        said = nano.llm.generate(
            inputs_embeds=asked,
            attention_mask=torch.ones(asked.shape[:2], dtype=torch.long),
            min_new_tokens=count,
            max_new_tokens=count,
            no_repeat_ngram_size=NO_REPEAT_NGRAM,
            do_sample=False,
            pad_token_id=chat.end,
        )
        whole = conversation.describe(chat.tokenizer.decode(said[0]))
        prefix, _ = nano._embed_prefix([image])
        states = nano.llm(
            inputs_embeds=torch.cat([prefix, nano._embed(torch.tensor([chat.tokens(whole).ids]))], dim=1)
        )
        return self.predictors[conversation.aspect].predict(states.logits[0])


def _unpacked(assessor: Assessor) -> NanoBackbone:
    """The backbone with the language model as the library runs it."""
    backbone = NanoBackbone.from_base()
    backbone.image_encoder.connector = assessor.backbone.image_encoder.connector
    backbone.image_encoder.vision = assessor.backbone.image_encoder.vision
    return backbone


def _over_vocabulary(shape: PredictorConfig, head: Tensor) -> Predictor:
    return Predictor(
        PredictorConfig(len(head), projection="vocab", dim=shape.dim, blocks=shape.blocks)
    ).eval()


def compare(assessor: Assessor, images: list[Image.Image]) -> tuple[float, float]:
    """Seconds until the first image is judged, and until all are in order, as on the Compare tab."""
    started = time.perf_counter()
    moments = [time.perf_counter() - started for _ in ranked_as_assessed(assessor, images, PROMPT)]
    return moments[0], moments[-1]


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano", help="shipped name or checkpoint folder, of nano")
    parser.add_argument("--runs", type=int, default=5, help="assessments to time, after one to warm up")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    started = time.perf_counter()
    assessor = Assessor.from_pretrained(args.model)
    loading = time.perf_counter() - started
    images = [picture(number) for number in range(args.runs + 1)]
    _, *runs = [assess(assessor, image) for image in images]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    again = assess(assessor, images[-1])
    many = [(picture(args.runs + 1 + number), PROMPT) for number in range(BATCH_SIZE)]
    together = _timed(lambda: assessor.assess_all(many)) / BATCH_SIZE
    begin = args.runs + 1 + BATCH_SIZE
    large = [picture(begin + number).resize((COMPARED_SIDE, COMPARED_SIDE)) for number in range(COMPARED)]
    first, compared = compare(assessor, large)
    published = Published(assessor)
    bar = tqdm(zip(images[1:], runs, strict=True), total=len(runs), desc="published recipe", leave=False)
    theirs = [published.assess(image, ours.tokens) for image, ours in bar]

    def median(values: list[float]) -> float:
        return statistics.median(values)

    done = median([run.all_done for run in runs])
    print(f"{assessor.card.title}, {args.threads} threads, {args.runs} runs, 512 x 512, three aspects")
    print(f"loading              {loading:6.1f} s")
    print(f"first words          {median([run.first_words for run in runs]):6.2f} s median")
    print(f"all three done       {done:6.2f} s median, {max(run.all_done for run in runs):.2f} s slowest")
    print(f"the same image again {again.all_done:6.2f} s, first words {again.first_words:.2f} s")
    print(f"{BATCH_SIZE} images at once     {together:6.2f} s an image, {done / together:.1f} times as many")
    print(f"{COMPARED} of {COMPARED_SIDE} px compared {compared:6.2f} s, the first after {first:.2f} s")
    print(f"peak memory          {peak:6.0f} MB")
    print(f"published recipe     {median(theirs):6.2f} s median, {median(theirs) / done:.1f} times as long")


if __name__ == "__main__":
    main()
