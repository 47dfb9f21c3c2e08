"""The default backbone: EfficientNet-Lite0 -> connector -> SmolLM2-135M, made for two CPU cores."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import Cache, LlamaForCausalLM, NoRepeatNGramLogitsProcessor, PreTrainedTokenizerBase

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.adapters import load_adapter
from m3agiqa.backbones.base import Answers, Backbone, Delta, Generation, Part, Request
from m3agiqa.backbones.chat import ChatTokens, answers_of
from m3agiqa.backbones.generation import GenerationBatch, generate
from m3agiqa.backbones.kv_cache import DecoderState, padded, select_rows
from m3agiqa.backbones.nano.connector import EMBEDDING_SCALE, SUMMARY_TOKENS, VISUAL_TOKENS
from m3agiqa.backbones.nano.efficientnet_lite import POINTWISE_LAYERS, EfficientNetLite0, pretrained_encoder
from m3agiqa.backbones.nano.grounded_text import FirstEstimate, grounded_texts, read_first_estimates
from m3agiqa.backbones.nano.head_adapter import HeadAdapter
from m3agiqa.backbones.nano.image_encoder import (
    CONNECTOR_FILE,
    PROMPT_ALIGNERS_FILE,
    QUALITY_ENCODER_FILE,
    VISION_ADAPTER_FOLDER,
    EncodedImages,
    ImageEncoder,
)
from m3agiqa.backbones.nano.language_model import NanoChat, judges_prompt, load_language_model
from m3agiqa.backbones.nano.packed_decoder import PackedDecoder, new_cache
from m3agiqa.backbones.nano.prompt_alignment import rotate
from m3agiqa.backbones.nano.word_states import WordStates
from m3agiqa.backbones.per_aspect import PerAspect, sharing_copy
from m3agiqa.backbones.placement import AS_PUBLISHED, Placement
from m3agiqa.conversation import Conversation
from m3agiqa.download.pypi import EFFICIENTNET_LITE0, SMOLLM2_135M, Progress, weight_path
from m3agiqa.errors import InputError, raise_if_stopped
from m3agiqa.prompt_elements import CheckedElement, PromptElement
from m3agiqa.quality_map import QualityMap, Report

MAX_NEW_TOKENS = 96  # the longest teacher description has 53 words, about 75 tokens
NO_REPEAT_NGRAM = 5  # a model of this size falls into loops otherwise
CACHED_IMAGES = 4
ADAPTER_FOLDER = "adapter"  # of the language model


class NanoBackbone:
    """One adapter serves all aspects. nano's own recipe puts it into the language model."""

    name = "nano"
    revision = 5

    def __init__(
        self, vision: EfficientNetLite0, llm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.llm = llm
        self.chat = NanoChat(tokenizer)
        self.hidden_size: int = llm.config.hidden_size
        self.vocab_size: int = llm.config.vocab_size
        self.image_encoder = ImageEncoder(vision, self.hidden_size)
        self.word_states = WordStates(llm, tokenizer)
        self.first_estimates: dict[Aspect, FirstEstimate] = {}
        """Without them descriptions are written freely."""
        self.head_adapter: HeadAdapter | None = None
        self.decoder: PackedDecoder | None = None
        """What replaces the language model at inference, where its layers need no names and no gradients."""
        self._recent: OrderedDict[str, _Prefix] = OrderedDict()
        """Of the latest images, which may be asked about again with another prompt; by their hash."""
        self._described: tuple[list[Image.Image | None], EncodedImages | None] = [], None
        """The images that were described last."""
        self._init_from: Path | None = None  # where training begins from

    @classmethod
    def from_base(cls, progress: Progress | None = None) -> NanoBackbone:
        """Base weights only: the connector is random, so this one still has to be trained."""
        vision = pretrained_encoder(progress)
        language_file = weight_path(SMOLLM2_135M, progress)
        if progress:
            progress("Loading the language model", 0.0)
        llm, tokenizer = load_language_model(language_file)
        return cls(vision, llm, tokenizer)

    @classmethod
    def load(
        cls, folder: Path, progress: Progress | None = None, placement: Placement = AS_PUBLISHED
    ) -> Backbone:
        """Base weights with what was trained, from a checkpoint folder, for inference.

        A folder with sub-folders by aspect has a connector and adapters for each of them. Raises InputError
        for a placement elsewhere than on the CPU.
        """
        if placement.quantize or placement.device not in (None, "auto", "cpu"):
            raise InputError(
                "nano is small: it runs on the CPU, in the precision it was made for. Leave out {quantize} "
                "and {device}, or choose another model.",
                quantize="",
                device="",
            )
        base = cls.from_base(progress)
        trained = [aspect for aspect in Aspect if (folder / aspect / CONNECTOR_FILE).exists()]
        if trained:
            return PerAspect({aspect: base.sibling(folder / aspect) for aspect in trained})
        base.image_encoder.read_for_inference(folder)
        base.first_estimates = read_first_estimates(folder)
        base.head_adapter = HeadAdapter.read(folder)
        base.llm = load_adapter(base.llm, folder / ADAPTER_FOLDER, merge=True)
        base.decoder = PackedDecoder(base.llm)
        base.image_encoder.is_serving = True
        return base

    def sibling(self, folder: Path) -> NanoBackbone:
        """Another backbone, trained as a folder says, that shares the base weights of this one."""
        other = copy.copy(self)
        other.image_encoder = self.image_encoder.sibling(folder)
        other.first_estimates = read_first_estimates(folder)
        other.head_adapter = HeadAdapter.read(folder)
        other.llm = load_adapter(sharing_copy(self.llm), folder / ADAPTER_FOLDER)
        return other

    @property
    def head(self) -> Tensor:
        return self.llm.get_output_embeddings().weight

    def knows_words(self, prompt: str) -> bool:
        return self.image_encoder.prompt_aligners.know_words(prompt, self.word_states)

    @torch.inference_mode()
    def check_elements(self, image: Image.Image, elements: Sequence[PromptElement]) -> list[CheckedElement]:
        images, encoded = self._described
        numbers = [number for number, described in enumerate(images) if described is image]
        if encoded is None or not numbers:
            numbers, encoded = [0], self._prefix([image]).images
            assert encoded is not None
        aligned, aligners = encoded.aligned_with(numbers[0]), self.image_encoder.prompt_aligners
        return [aligners.check(aligned, element, self.word_states) for element in elements]

    def quality_map(
        self,
        image: Image.Image,
        report: Report = lambda done, total: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> QualityMap:
        return self.image_encoder.quality_map(image, report, stop)

    # --- training ----------------------------------------------------------------------------

    @classmethod
    def for_training(cls, init_from: Path | None) -> NanoBackbone:
        """Base weights with the connector and the adapters that a folder holds; without one it is random."""
        backbone = cls.from_base()
        if init_from:
            backbone.image_encoder.read(init_from)
        backbone._init_from = init_from
        return backbone

    @property
    def parts(self) -> dict[str, Part]:
        images, begun = self.image_encoder, self._init_from
        vision, language = EFFICIENTNET_LITE0.filename, SMOLLM2_135M.filename
        return {
            "vision": Part.adapted(images.vision, VISION_ADAPTER_FOLDER, POINTWISE_LAYERS, vision, begun),
            "connector": Part(images.connector, CONNECTOR_FILE),
            "matchers": Part(images.prompt_aligners, PROMPT_ALIGNERS_FILE),
            "quality_encoder": Part(images.quality_encoder, QUALITY_ENCODER_FILE),
            "language": Part.adapted(self.llm, ADAPTER_FOLDER, "all-linear", language, begun),
        }

    def answers(self, requests: Sequence[Request]) -> Answers:
        return answers_of(self._answer_rows(requests), self.llm.get_output_embeddings())

    @torch.inference_mode()
    def answer_states(self, requests: Sequence[Request]) -> Answers:
        """As `answers`, with hidden states [N, d] in place of logits."""
        return answers_of(self._answer_rows(requests), lambda states: states)

    @torch.inference_mode()
    def first_estimate_logits(self, request: Request) -> list[float]:
        """What `first_estimates` are made of, for each conversation about an image."""
        images = self._prefix([request.image]).images
        assert images is not None
        return [float(self._logit(images, 0, conversation)) for conversation in request.conversations]

    def _answer_rows(self, requests: Sequence[Request]) -> list[tuple[Tensor, ChatTokens]]:
        """Hidden states [L, d] of each conversation's own tokens, and these."""
        if self.llm.is_activation_checkpointing:
            hidden, rows = self._forward_without_cache(requests)
        else:
            state, rows = self.forward(requests)
            hidden = state.columns[-1]
        return [(states[: len(row.ids)], row) for states, row in zip(hidden, rows, strict=True)]

    def enable_gradient_checkpointing(self) -> None:
        """In the language model; the vision encoder's activations are few beside its own."""
        self.llm.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self.llm.train()  # the library computes nothing anew in models that are not being trained

    # --- forward -----------------------------------------------------------------------------

    def forward(
        self, requests: Sequence[Request], pad_left: bool = False
    ) -> tuple[DecoderState, list[ChatTokens]]:
        """Conversations, as far as they go; differentiable. Also returns their tokens after the image.

        Image -> image features -> visual tokens -> language model: once an image (`_prefix`). Then, for each
        conversation, image and prompt -> correspondence token, and with it the conversation's own tokens.
        """
        prefix = self._prefix([request.image for request in requests])
        return self._forward(prefix, requests, pad_left)

    def _forward(
        self, prefix: _Prefix, requests: Sequence[Request], pad_left: bool
    ) -> tuple[DecoderState, list[ChatTokens]]:
        correspondence = self._correspondence_tokens(prefix.images, requests)
        owners, rows = self.chat.rows(requests)
        state = self._begin(prefix, owners, correspondence)
        ids, own = padded([row.ids for row in rows], left=pad_left)
        ids, own = ids.to(self.llm.device), own.to(self.llm.device)
        starts = own.argmax(1).tolist() if pad_left else [0] * len(rows)
        state.append(self._embed_rows(ids, starts, correspondence), own)
        return state, rows

    def _forward_without_cache(self, requests: Sequence[Request]) -> tuple[Tensor, list[ChatTokens]]:
        """Hidden states [rows, L, d] of the rows' own tokens, and these; a prefix is computed for each row.

        Layers whose activations are computed anew in the backward pass cannot share a cache.
        """
        embedded, images = self._embed_prefix([request.image for request in requests])
        owners, rows = self.chat.rows(requests)
        ids, own = padded([row.ids for row in rows])
        ids, own = ids.to(self.llm.device), own.to(self.llm.device)
        length = embedded.shape[1]
        correspondence = self._correspondence_tokens(images, requests)
        questions = self._embed_rows(ids, [0] * len(rows), correspondence)
        hidden: Tensor = self.llm.model(
            inputs_embeds=torch.cat([embedded[self._tensor(owners)], questions], dim=1),
            attention_mask=torch.cat([own.new_ones(len(rows), length), own], dim=1),
            use_cache=False,
        ).last_hidden_state
        return hidden[:, length:], rows

    @torch.inference_mode()
    def encode(self, requests: Sequence[Request]) -> list[Tensor]:
        state, _ = self.forward(requests)
        return state.states()

    @torch.inference_mode()
    def describe(
        self, requests: Sequence[Request], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Delta | Generation]:
        self.chat.check_questions(requests)
        prefix = self._prefix([request.image for request in requests], stop)
        raise_if_stopped(stop)
        self._described = [request.image for request in requests], prefix.images
        state, _ = self._forward(prefix, requests, pad_left=True)
        closings = [self.chat.closing(c) for request in requests for c in request.conversations]
        rating_embeddings = self.head[self.chat.rating_tokens].float()  # 16 bit would make words tie
        batch = GenerationBatch(
            state,
            self._logits,
            self.chat,
            closings,
            limit=MAX_NEW_TOKENS,
            processor=NoRepeatNGramLogitsProcessor(NO_REPEAT_NGRAM),
            grammars=grounded_texts(
                self.image_encoder, prefix.images, requests, self.first_estimates, self.word_states, self.chat
            ),
            rating_head=lambda states: (states.float()[:, None] * rating_embeddings).sum(-1),
        )
        yield from generate(batch, stop)

    def _logit(self, images: EncodedImages, owner: int, conversation: Conversation) -> Tensor:
        return self.image_encoder.logit(images, owner, conversation, self.word_states)

    # --- images ------------------------------------------------------------------------------

    def _embed_prefix(
        self, images: Sequence[Image.Image | None], stop: Callable[[], bool] = lambda: False
    ) -> tuple[Tensor, EncodedImages | None]:
        """Embeddings of chat header and visual tokens [N, P, d], and what the latter were made of."""
        header = self._tensor(self.chat.before_image).expand(len(images), -1)
        embedded, encoded = self._embed(header), None
        shown = [image for image in images if image is not None]
        if shown:
            encoded = self.image_encoder.encode(shown, stop)
            embedded = torch.cat([embedded, encoded.tokens.to(embedded.dtype)], dim=1)
        return embedded, encoded

    def _prefix(
        self, images: Sequence[Image.Image | None], stop: Callable[[], bool] = lambda: False
    ) -> _Prefix:
        """What conversations begin with; a single image's is kept for a while where nothing is trained."""
        image = images[0]
        if self.decoder is None or len(images) > 1 or image is None:
            return self._compute_prefix(images, stop)
        key = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
        prefix = self._recent.pop(key, None) or self._compute_prefix(images, stop)
        self._recent[key] = prefix
        while len(self._recent) > CACHED_IMAGES:
            self._recent.popitem(last=False)
        return prefix

    def _compute_prefix(self, images: Sequence[Image.Image | None], stop: Callable[[], bool]) -> _Prefix:
        embedded, encoded = self._embed_prefix(images, stop)
        raise_if_stopped(stop)
        cache = new_cache()
        mask = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)
        hidden = self._decode(embedded, mask, mask.cumsum(1) - 1, cache)
        return _Prefix(cache, hidden[:, : len(self.chat.before_image)], encoded)

    def _begin(
        self, prefix: _Prefix, owners: Sequence[int], correspondence: Sequence[Tensor | None]
    ) -> DecoderState:
        """A row for each conversation, with the cache of its prefix and the states that the predictor reads.

        At image positions these states are the summary tokens in turn, or, where the prompt is judged, the
        correspondence token; normalized as the output head would see them. No loss ever reaches the last
        layer's own states there, so that they lack what the predictor needs, and in the predictor's mean the
        grid cells would outweigh their summary.
        """
        states = prefix.header[self._tensor(owners)]
        if prefix.images is not None:
            turns = torch.arange(VISUAL_TOKENS) % SUMMARY_TOKENS
            read = [
                prefix.images.tokens[owner, -SUMMARY_TOKENS:][turns]
                if token is None
                else token.expand(VISUAL_TOKENS, -1)
                for owner, token in zip(owners, correspondence, strict=True)
            ]
            image_states = [self.llm.model.norm(tokens.to(states.dtype)) for tokens in read]
            states = torch.cat([states, torch.stack(image_states)], dim=1)
        mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        cache = select_rows(prefix.cache, self._tensor(owners))
        return DecoderState(self._decode, cache, states, mask, mask.cumsum(1) - 1)

    # --- prompts -----------------------------------------------------------------------------

    def _correspondence_tokens(
        self, images: EncodedImages | None, requests: Sequence[Request]
    ) -> list[Tensor | None]:
        """The token [d] that says how well image and prompt match, for conversations that judge it."""
        tokens: list[Tensor | None] = []
        for owner, request in enumerate(requests):
            for conversation in request.conversations:
                judged = images is not None and judges_prompt(conversation)
                logit = self._logit(images, owner, conversation) if judged else None
                tokens.append(None if logit is None else self._correspondence_token(logit))
        return tokens

    def _correspondence_token(self, logit: Tensor) -> Tensor:
        """[d]: its direction is between the embeddings of the worst and the best rating word."""
        ratings = self.chat.rating_tokens
        worst, best = self._embed(self._tensor([ratings[0], ratings[-1]])).float()
        return EMBEDDING_SCALE * self.hidden_size**0.5 * rotate(worst, best, logit)

    def fits(self, prompt: str) -> bool:
        return self.chat.fits(prompt)

    # --- tokens ------------------------------------------------------------------------------

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        """Whole numbers where the language model is."""
        return torch.tensor(numbers, dtype=torch.long, device=self.llm.device)

    def _embed(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.llm.get_input_embeddings()(ids)
        return embedded

    def _embed_rows(
        self, ids: Tensor, starts: Sequence[int], correspondence: Sequence[Tensor | None]
    ) -> Tensor:
        """Embeddings [rows, L, d], with the correspondence token at the start of rows that have one."""
        embedded = self._embed(ids).clone()
        for row, (start, token) in enumerate(zip(starts, correspondence, strict=True)):
            if token is not None:
                embedded[row, start] = token.to(embedded.dtype)
        return embedded

    def _decode(self, inputs: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """The language model without its head; see `kv_cache.Forward`."""
        embedded = inputs if inputs.is_floating_point() else self._embed(inputs)
        if self.decoder:
            return self.decoder(embedded, cache, mask, positions)
        hidden: Tensor = self.llm.model(
            inputs_embeds=embedded,
            past_key_values=cache,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _logits(self, states: Tensor) -> Tensor:
        """[rows, d] -> [rows, vocab]."""
        head = self.decoder.head if self.decoder else self.llm.get_output_embeddings()
        logits = head(states).float()
        return self.head_adapter.add_to(logits, states) if self.head_adapter else logits


@dataclass(frozen=True)
class _Prefix:
    """What all conversations about an image begin with: chat header and visual tokens, for N images."""

    cache: Cache
    header: Tensor
    """States [N, H, d] of the chat header."""
    images: EncodedImages | None
    """Text-only conversations have none."""
