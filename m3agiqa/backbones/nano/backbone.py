"""The default backbone: EfficientNet-Lite0 -> connector -> SmolLM2-135M, at home on two CPU cores."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    Cache,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from m3agiqa.aspects import RATINGS
from m3agiqa.backbones.base import Delta, Request, Spoken
from m3agiqa.backbones.nano.connector import VISUAL_TOKENS, Connector
from m3agiqa.backbones.nano.language import Chat, Tokens, load_language_model, new_cache
from m3agiqa.backbones.nano.vision import EfficientNetLite0, views
from m3agiqa.errors import Stopped
from m3agiqa.weights import EFFICIENTNET_LITE0, SMOLLM2, Progress, weight_path

MAX_NEW_TOKENS = 96  # the longest teacher description has 53 words, about 75 tokens
RATE_SHARE = 0.25  # share of a batch's rows that must have ended before they are rated
NO_REPEAT_NGRAM = 5  # a model of this size falls into loops otherwise
SENTENCE_ENDS = (".", "!", "?")
CONNECTOR_FILE = "connector.safetensors"
ADAPTER_FOLDER = "adapter"


class NanoBackbone:
    """One adapter serves all aspects; it sits in the language model, the vision encoder is frozen."""

    name = "nano"

    def __init__(
        self, vision: EfficientNetLite0, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.vision = vision
        self.llm = llm
        self.chat = Chat(tokenizer)
        self.hidden_size: int = llm.config.hidden_size
        self.vocab_size: int = llm.config.vocab_size
        self.connector = Connector(self.hidden_size)
        self._rating_ids = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in RATINGS]

    @classmethod
    def from_base(cls, progress: Progress | None = None) -> NanoBackbone:
        """Base weights only: the connector is random, so this one still has to be trained."""
        vision_file = weight_path(EFFICIENTNET_LITE0, progress)
        language_file = weight_path(SMOLLM2, progress)
        if progress:
            progress("Loading the language model", 0.0)
        vision = EfficientNetLite0()
        vision.load_state_dict(torch.load(vision_file, weights_only=True))
        llm, tokenizer = load_language_model(language_file)
        return cls(vision.eval().requires_grad_(False), llm, tokenizer)

    @classmethod
    def load(cls, folder: Path, progress: Progress | None = None) -> NanoBackbone:
        """Base weights with the trained connector and adapter of a checkpoint folder, for inference."""
        backbone = cls.from_base(progress)
        backbone.connector.load_state_dict(load_file(folder / CONNECTOR_FILE))
        backbone.connector.float().eval().requires_grad_(False)
        adapted = PeftModel.from_pretrained(backbone.llm, folder / ADAPTER_FOLDER)
        backbone.llm = adapted.merge_and_unload().eval().requires_grad_(False)
        return backbone

    def add_adapter(self, config: LoraConfig) -> PeftModel:
        """Put trainable LoRA layers into the language model (in place); the wrapper saves them."""
        return get_peft_model(self.llm, config)

    @property
    def head(self) -> Tensor:
        return self.llm.get_output_embeddings().weight

    # --- reading -----------------------------------------------------------------------------

    def read(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor, list[Tokens]]:
        """Forward whole conversations; differentiable.

        Returns prefix states [requests, P, d], row states [rows, L, d] (right-padded) and the rows'
        tokens. The image prefix is computed once per request and shared by its conversations.
        """
        cache, prefix = self._prefix([request.image for request in requests])
        owners, rows = self._rows(requests)
        cache.batch_select_indices(torch.tensor(owners))
        length = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), length), self.chat.end)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            mask[i, : len(row.ids)] = 1
        start = prefix.shape[1]
        positions = torch.arange(start, start + length).expand(len(rows), -1)
        hidden = self._forward(ids, cache, _after_prefix(start, mask), positions)
        return prefix, hidden, rows

    @torch.inference_mode()
    def encode(self, requests: Sequence[Request]) -> list[Tensor]:
        prefix, hidden, rows = self.read(requests)
        owners = [i for i, request in enumerate(requests) for _ in request.conversations]
        return [
            torch.cat([prefix[owner], states[: len(row.ids)]])
            for owner, states, row in zip(owners, hidden, rows, strict=True)
        ]

    # --- speaking ----------------------------------------------------------------------------

    @torch.inference_mode()
    def describe(
        self, requests: Sequence[Request], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Delta | Spoken]:
        speech = _Speech(self, requests)
        while speech.rows:
            if stop():
                raise Stopped("Stopped on request.")
            yield from speech.step()
            ended = [i for i, done in enumerate(speech.done) if done]
            # Not one by one in a large batch, where a few ended rows cost less than another forward.
            if len(ended) >= RATE_SHARE * len(speech.rows):
                yield from speech.part(ended).rate()
                speech = speech.part([i for i, done in enumerate(speech.done) if not done])

    # --- parts -------------------------------------------------------------------------------

    def _prefix(self, images: Sequence[Image.Image | None]) -> tuple[Cache, Tensor]:
        """Keys and values, and states [N, P, d], of chat header and visual tokens.

        The state of an image position is the visual token itself, normalized as the output head would
        see it. No loss ever reaches the last layer there, and what it keeps of the image judges much
        worse. Text-only conversations (all images None) have the header alone.
        """
        header = torch.tensor(self.chat.before_image).expand(len(images), -1)
        embedded = self._embed(header)
        shown = [image for image in images if image is not None]
        if shown:
            tokens = self.visual_tokens(torch.stack([views(image) for image in shown]))
            embedded = torch.cat([embedded, tokens.to(embedded.dtype)], dim=1)
        cache = new_cache()
        output = self.llm.model(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
        seen = self.llm.model.norm(embedded[:, header.shape[1] :])
        return cache, torch.cat([output.last_hidden_state[:, : header.shape[1]], seen], dim=1)

    def visual_tokens(self, pixels: Tensor) -> Tensor:
        """[N, views, 3, 224, 224] -> [N, VISUAL_TOKENS, d]."""
        with torch.no_grad():
            maps = self.vision(pixels.flatten(0, 1))
        tokens = self.connector(maps.unflatten(0, pixels.shape[:2]))
        assert tokens.shape[1] == VISUAL_TOKENS
        return tokens

    def _rows(self, requests: Sequence[Request]) -> tuple[list[int], list[Tokens]]:
        owners = [i for i, request in enumerate(requests) for _ in request.conversations]
        return owners, [self.chat.tokens(c) for request in requests for c in request.conversations]

    def _embed(self, ids: Tensor) -> Tensor:
        return self.llm.get_input_embeddings()(ids)

    def _forward(self, ids: Tensor, cache: Cache, mask: Tensor, positions: Tensor) -> Tensor:
        return self.llm.model(
            inputs_embeds=self._embed(ids),
            past_key_values=cache,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
        ).last_hidden_state


class _Speech:
    """State of one batch of conversations while it is spoken, token by token.

    Columns are shared by all rows: prefix | questions (left-padded) | descriptions | second questions.
    A row that has ended is masked out of the columns that the others still need, until it is parted
    from them to be rated.
    """

    def __init__(self, backbone: NanoBackbone, requests: Sequence[Request]) -> None:
        self.backbone = backbone
        self.owners, questions = backbone._rows(requests)
        self.conversations = [c for request in requests for c in request.conversations]
        self.cache, self.prefix = backbone._prefix([request.image for request in requests])
        self.cache.batch_select_indices(torch.tensor(self.owners))
        self.rows = list(range(len(questions)))
        length = max(len(question.ids) for question in questions)
        ids = torch.full((len(questions), length), backbone.chat.end)
        shown = torch.zeros(len(questions), length, dtype=torch.long)
        for i, question in enumerate(questions):
            ids[i, length - len(question.ids) :] = torch.tensor(question.ids)
            shown[i, length - len(question.ids) :] = 1
        start = self.prefix.shape[1]
        self.mask = _after_prefix(start, shown)
        positions = (start + shown.cumsum(1) - 1).clamp_min(0)
        hidden = backbone._forward(ids, self.cache, self.mask, positions)
        self.states = [[h[s.bool()]] for h, s in zip(hidden, shown, strict=True)]
        self.last = hidden[:, -1]
        self.said: list[list[int]] = [[] for _ in questions]
        self.text = ["" for _ in questions]
        self.done = [False for _ in questions]
        self.steps = 0
        self.guard = LogitsProcessorList([NoRepeatNGramLogitsProcessor(NO_REPEAT_NGRAM)])

    def part(self, indices: list[int]) -> _Speech:
        """Some of the rows as a speech of their own."""
        part = copy.copy(self)
        for name in ("rows", "owners", "conversations", "states", "said", "text", "done"):
            setattr(part, name, [getattr(self, name)[i] for i in indices])
        pick = torch.tensor(indices, dtype=torch.long)
        part.mask, part.last, part.cache = self.mask[pick], self.last[pick], new_cache()
        for index, layer in enumerate(self.cache.layers):
            part.cache.update(layer.keys[pick], layer.values[pick], index)
        return part

    def step(self) -> Iterator[Delta]:
        """One more token for every row that is still speaking."""
        chat = self.backbone.chat
        logits = (self.last @ self.backbone.head.T).float()
        for i, row in enumerate(self.said):
            if not self.done[i]:
                logits[i] = self.guard(torch.tensor([row], dtype=torch.long), logits[i : i + 1])[0]
        tokens = logits.argmax(-1)
        self.steps += 1
        for i, token in enumerate(tokens.tolist()):
            if self.done[i]:
                continue
            if token == chat.end:
                self.done[i] = True
                continue
            self.said[i].append(token)
            text = chat.tokenizer.decode(self.said[i])
            if not text.endswith("\ufffd") and len(text) > len(self.text[i]):
                yield Delta(self.rows[i], text[len(self.text[i]) :])
                self.text[i] = text
        if all(self.done):
            return
        self._append(tokens[:, None], torch.tensor([[0 if done else 1] for done in self.done]))
        if self.steps == MAX_NEW_TOKENS:
            self._cut()

    def rate(self) -> Iterator[Spoken]:
        """Ask all rows for their rating word."""
        chat = self.backbone.chat
        closings = []
        for conversation in self.conversations:
            whole = chat.tokens(conversation.describe("")).ids
            closings.append(whole[len(chat.tokens(conversation).ids) :])  # starts at the <|im_end|>
        length = max(map(len, closings))
        ids = torch.full((len(closings), length), chat.end)
        shown = torch.zeros(len(closings), length, dtype=torch.long)
        for i, closing in enumerate(closings):
            ids[i, length - len(closing) :] = torch.tensor(closing)
            shown[i, length - len(closing) :] = 1
        self._append(ids, shown)
        words = (self.last @ self.backbone.head[self.backbone._rating_ids].T).argmax(-1)
        for i, word in enumerate(words.tolist()):
            hidden = torch.cat([self.prefix[self.owners[i]], *self.states[i]])
            description = chat.tokenizer.decode(self.said[i]).strip()
            yield Spoken(self.rows[i], description, RATINGS[word], hidden)

    def _append(self, ids: Tensor, shown: Tensor) -> None:
        seen = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, shown], dim=1)
        positions = (seen + shown.cumsum(1) - 1).clamp_min(0)
        hidden = self.backbone._forward(ids, self.cache, self.mask, positions)
        for states, h, s in zip(self.states, hidden, shown, strict=True):
            states.append(h[s.bool()])
        self.last = hidden[:, -1]

    def _cut(self) -> None:
        """End rows that ran out of tokens at their last whole sentence; forget what came after it."""
        decode = self.backbone.chat.tokenizer.decode
        for i, done in enumerate(self.done):
            if done:
                continue
            self.done[i] = True
            said = self.said[i]
            ends = [k for k in range(1, len(said) + 1) if decode(said[:k])[-1:] in SENTENCE_ENDS]
            keep = ends[-1] if ends else len(said)
            self.said[i] = said[:keep]
            self.mask[i, self.mask.shape[1] - self.steps + keep :] = 0
            question, *answer = self.states[i]
            self.states[i] = [question, torch.cat(answer)[:keep]]


def _after_prefix(length: int, mask: Tensor) -> Tensor:
    return torch.cat([torch.ones(mask.shape[0], length, dtype=mask.dtype), mask], dim=1)
