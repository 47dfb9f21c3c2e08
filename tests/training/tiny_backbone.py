"""A backbone small enough to be fine-tuned in a second, unlike nano in all that it is free to choose."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from m3agiqa import Aspect, Rating
from m3agiqa.backbones.base import Answers, Delta, Generation, Part, Request
from m3agiqa.conversation import Conversation
from training.stages.curriculum import Lesson

WIDTH = 16
VOCAB = 128  # letters of ASCII are the tokens
END = 3
SIDE = 16  # pixels


class Eye(nn.Module):
    """[N, 3, 16, 16] -> [N, 4, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, WIDTH, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        seen = torch.tanh(self.norm(self.wide(pixels)))
        return nn.functional.adaptive_avg_pool2d(self.point(seen), 2).flatten(2).transpose(1, 2)


class Bridge(nn.Linear):
    """[N, 4, WIDTH] -> [N, 4, WIDTH]; part of it is not learned."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)
        self.register_buffer("fitted", torch.full((1,), 1 / 3))

    def forward(self, seen: Tensor) -> Tensor:
        return super().forward(seen) + self.fitted


class TinyBackbone:
    """Reads every conversation by itself, without a cache; has a bridge that no one has published."""

    name = "tiny"
    revision = 1
    hidden_size = WIDTH
    vocab_size = VOCAB

    def __init__(self) -> None:
        self.eye, self.bridge = Eye(), Bridge()
        self.llm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=WIDTH,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                initializer_range=0.3,  # the head is frozen: small weights could not be sure of anything
            )
        )
        self.checkpointing = False
        self.begun: Path | None = None

    @classmethod
    def for_training(cls, begun: Path | None) -> Self:
        torch.manual_seed(7)
        backbone = cls()
        if begun:
            backbone.begun = begun
            backbone.bridge.load_state_dict(load_file(begun / "bridge.safetensors"))
        return backbone

    @property
    def parts(self) -> dict[str, Part]:
        folders = (self.begun and self.begun / name for name in ("eye-adapter", "adapter"))
        eye, adapter = (folder if folder and folder.is_dir() else None for folder in folders)
        return {
            "vision": Part(self.eye, "eye-adapter", "point", "eye.pth", eye),
            "bridge": Part(self.bridge, "bridge.safetensors"),
            "language": Part(self.llm, "adapter", "all-linear", "llama.gguf", adapter),
        }

    @property
    def head(self) -> Tensor:
        return self.llm.lm_head.weight

    def answers(self, requests: Sequence[Request]) -> Answers:
        if self.checkpointing:
            states, ids, turns = checkpoint(self._read, requests, use_reentrant=False)
        else:
            states, ids, turns = self._read(requests)
        return Answers(self.llm.lm_head(states), ids, turns)

    def enable_gradient_checkpointing(self) -> None:
        self.checkpointing = True

    def describe(
        self, requests: Sequence[Request], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Delta | Generation]:
        raise NotImplementedError

    def encode(self, requests: Sequence[Request]) -> list[Tensor]:
        raise NotImplementedError

    def _read(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor, Tensor]:
        device = self.head.device
        rows = [(request.image, c) for request in requests for c in request.conversations]
        begun = torch.zeros(len(rows), 0, WIDTH, device=device)
        if rows[0][0] is not None:
            begun = self.bridge(self.eye(torch.stack([_pixels(image) for image, _ in rows]).to(device)))
        said = [_tokens(conversation) for _, conversation in rows]
        ids = pad_sequence([torch.tensor(letters) for letters, _ in said], batch_first=True).to(device)
        turn = pad_sequence([torch.tensor(turns) for _, turns in said], batch_first=True).to(device)
        embedded = torch.cat([begun, self.llm.get_input_embeddings()(ids)], dim=1)
        hidden = self.llm.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        before = hidden[:, begun.shape[1] :].roll(1, dims=1)
        return before[turn > 0], ids[turn > 0], turn[turn > 0]


def _pixels(image: Image.Image) -> Tensor:
    small = image.resize((SIDE, SIDE))
    return torch.tensor(list(small.tobytes())).view(SIDE, SIDE, 3).permute(2, 0, 1) / 255


def _tokens(conversation: Conversation) -> tuple[list[int], list[int]]:
    ids, turns, answers = [], [], 0
    for turn in conversation.turns:
        letters = [*turn.content.encode("ascii"), END]
        answers += turn.role == "assistant"
        ids += letters
        turns += [answers if turn.role == "assistant" else 0] * len(letters)
    return ids, turns


def tiny_batches(folder: Path) -> list[list[Lesson]]:
    """Twelve batches: of three images with one or two conversations each, one of texts, and a short one."""
    folder.mkdir(parents=True, exist_ok=True)
    batches = []
    for number in range(12):
        lessons = []
        for i in range(1 if number == 4 else 3):
            image = Image.new("RGB", (40, 40), (40 * i, 20 * number, 90))
            ImageDraw.Draw(image).ellipse((i, number, 24 + i, 24), fill=(200, 20 * number, 60))
            path = folder / f"{number}-{i}.png"
            if not path.exists():
                image.save(path)
            said = tuple(
                Conversation.open(aspect, "a ball").describe("x" * (i + 2)).rate(Rating.GOOD)
                for aspect in list(Aspect)[: 1 + i % 2]
            )
            lessons.append(Lesson(None if number == 2 else path, said))
        batches.append(lessons)
    return batches
