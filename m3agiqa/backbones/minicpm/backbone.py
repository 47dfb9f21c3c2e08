"""The paper's backbone, MiniCPM-Llama3-V 2.5 with adapters: it generates descriptions and encodes
conversations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedTokenizerFast

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.adapters import load_adapter
from m3agiqa.backbones.base import Answers, Backbone, Delta, Generation, Part, Request
from m3agiqa.backbones.chat import ChatTokens, answers_of
from m3agiqa.backbones.element_questions import check_by_questions, logits_after
from m3agiqa.backbones.generation import GenerationBatch, generate_in_groups
from m3agiqa.backbones.kv_cache import DecoderState, library_forward, padded
from m3agiqa.backbones.memory import enough_for_work, room
from m3agiqa.backbones.minicpm.base_weights import (
    BASE_FILES,
    BASE_MODEL,
    CheckpointBase,
    PublishedAdapter,
    base_folder,
)
from m3agiqa.backbones.minicpm.chat import MAX_NEW_TOKENS, MAX_QUESTION_TOKENS, MiniCPMChat, load_tokenizer
from m3agiqa.backbones.minicpm.loading import check_room, load_model, read_config, read_slicing
from m3agiqa.backbones.minicpm.memory import Work, images_at_once
from m3agiqa.backbones.minicpm.model import MiniCPMV, VisionTower
from m3agiqa.backbones.minicpm.slicing import Slices, Slicing, sliced
from m3agiqa.backbones.per_aspect import ModuleT, PerAspect, sharing_copy
from m3agiqa.backbones.placement import AS_PUBLISHED, Placement
from m3agiqa.conversation import Conversation
from m3agiqa.download.hub import folder_version
from m3agiqa.download.pypi import Progress
from m3agiqa.errors import InputError, WeightsError, reason
from m3agiqa.grouping import batched_by_size
from m3agiqa.prompt_elements import CheckedElement, PromptElement

GENERATION_BATCH_SIZE = 24  # rows, where there is memory for them
ENCODING_BATCH_SIZE = 8
VISION_LORA = r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
LANGUAGE_LORA = r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
VISION_ADAPTER_FOLDER = "vision-adapter"
RESAMPLER_FILE = "resampler.safetensors"
LANGUAGE_ADAPTER_FOLDER = "language-adapter"
PUBLISHED_ADAPTER_FOLDER = "published-adapter"
"""An adapter of the paper's authors, over the whole model."""
GENERATION_ADAPTERS = (LANGUAGE_ADAPTER_FOLDER, PUBLISHED_ADAPTER_FOLDER)
TRAINED_FILES = (VISION_ADAPTER_FOLDER, RESAMPLER_FILE, *GENERATION_ADAPTERS)


class MiniCPMBackbone:
    """One language model for all aspects; each aspect may have a vision side of its own.

    Hidden states are handed out on the CPU, where predictors are.
    """

    name = "minicpm"
    revision = 1

    def __init__(self, model: MiniCPMV, tokenizer: PreTrainedTokenizerFast, slicing: Slicing) -> None:
        self.model = model
        self.chat = MiniCPMChat(tokenizer)
        self.slicing = slicing
        self.hidden_size: int = model.config.hidden_size
        self.vocab_size: int = model.config.vocab_size
        self.vision_towers: Mapping[Aspect | None, VisionTower] = {}
        """Of aspects with a vision side of their own, instead of the model's."""
        self._base: Path | None = None  # where the published weights are
        self._init_from: Path | None = None  # where training begins from

    @classmethod
    def from_folder(cls, folder: Path, **options: object) -> MiniCPMBackbone:
        """The published weights in a folder; options as `loading.load_model` has them."""
        tokenizer, slicing = load_tokenizer(folder), read_slicing(folder)
        backbone = cls(load_model(folder, **options), tokenizer, slicing)
        backbone._base = folder
        return backbone

    @classmethod
    def from_base(
        cls, progress: Progress | None = None, revision: str | None = None, **options: object
    ) -> MiniCPMBackbone:
        """The published weights from wherever `base_folder` finds them."""
        folder = base_folder(progress, revision)
        if progress:
            progress("Loading MiniCPM-Llama3-V 2.5", 0.0)
        return cls.from_folder(folder, **options)

    @classmethod
    def load(
        cls, folder: Path, progress: Progress | None = None, placement: Placement = AS_PUBLISHED
    ) -> Backbone:
        """Published weights with what was trained, from a checkpoint folder, for inference.

        A folder with sub-folders by aspect has adapters for each of them. If these are of the vision side
        only, descriptions of all aspects are generated in one batch. Published adapters of aspects may stay
        where they are.
        """
        made_of = CheckpointBase.read(folder)
        own = [aspect for aspect in Aspect if _has(folder / aspect, TRAINED_FILES)]
        folders = [folder, *(folder / aspect for aspect in own)]
        copied = sum(_has(each, [PUBLISHED_ADAPTER_FOLDER]) for each in folders)
        work = Work(adapters=len(made_of.adapters) + copied)
        check_room(made_of.commit, placement, work)
        published = {aspect: adapter.folder(progress) for aspect, adapter in made_of.adapters.items()}
        device, quantize = placement.device, placement.quantize
        base = cls.from_base(progress, made_of.commit, device=device, quantize=quantize, work=work)
        if published:
            adapters = made_of.adapters
            return PerAspect({a: base.published(adapters[a], folder) for a, folder in published.items()})
        if not own:
            return base.sibling(folder)
        if any(_has(folder / aspect, GENERATION_ADAPTERS) for aspect in own):
            return PerAspect({aspect: base.sibling(folder / aspect) for aspect in own})
        base.vision_towers = {
            aspect: _vision_tower(base.model.vision_tower, folder / aspect) for aspect in own
        }
        return base

    def sibling(self, folder: Path) -> MiniCPMBackbone:
        """Another backbone, with the adapters of a folder, that shares the base weights of this one."""
        other, published = copy.copy(self), folder / PUBLISHED_ADAPTER_FOLDER
        other.model = model = with_adapter(self.model, published)
        vision_tower = _vision_tower(model.vision_tower, folder)
        model.vpm, model.resampler = vision_tower.vpm, vision_tower.resampler
        model.llm = with_adapter(model.llm, folder / LANGUAGE_ADAPTER_FOLDER)
        return other

    def published(self, adapter: PublishedAdapter, folder: Path) -> MiniCPMBackbone:
        """Another backbone, with a published adapter from a folder; shares weights as `sibling` does."""
        other = copy.copy(self)
        other.model = with_adapter(self.model, folder, adapter.repository)
        if adapter.max_slice_nums is not None:
            other.slicing = replace(self.slicing, max_slice_nums=adapter.max_slice_nums)
        return other

    def note_base(self, folder: Path) -> None:
        """Record of which base, and of which commit of it, the trained weights are."""
        if self._base is not None:
            CheckpointBase.of(self._base).write(folder)

    @classmethod
    def base_version(cls, folder: Path, fetch: bool = False) -> str:
        return folder_version(
            base_folder(revision=CheckpointBase.read(folder).commit, fetch=fetch), BASE_FILES
        )

    @property
    def head(self) -> Tensor:
        return self.model.get_output_embeddings().weight.detach().cpu()

    # --- training ----------------------------------------------------------------------------

    @classmethod
    def for_training(cls, init_from: Path | None) -> MiniCPMBackbone:
        """Published weights, in bfloat16 if they have 16 bit, and the resampler as a folder has it."""
        made_of = CheckpointBase.read(init_from) if init_from else CheckpointBase()
        if made_of.adapters:
            raise InputError(
                f"{init_from} has adapters over the whole model, which can be used and not be trained on. "
                "Start from the base instead (start: null)."
            )
        folder = base_folder(revision=made_of.commit)
        half = read_config(folder).dtype == torch.float16  # whose range gradients may leave
        backbone = cls.from_folder(folder, **({"dtype": torch.bfloat16} if half else {}))
        backbone.model.resampler.float()  # it may learn, in steps that are too small for 16 bit
        if init_from and (init_from / RESAMPLER_FILE).exists():
            backbone.model.resampler.load_state_dict(load_file(init_from / RESAMPLER_FILE))
        backbone._init_from = init_from
        return backbone

    @property
    def parts(self) -> dict[str, Part]:
        model, base, begun = self.model, BASE_MODEL, self._init_from
        return {
            "vision": Part.adapted(model.vpm, VISION_ADAPTER_FOLDER, VISION_LORA, base, begun),
            "resampler": Part(model.resampler, RESAMPLER_FILE, base=base),
            "language": Part.adapted(model.llm, LANGUAGE_ADAPTER_FOLDER, LANGUAGE_LORA, base, begun),
        }

    def answers(self, requests: Sequence[Request]) -> Answers:
        return answers_of(self._states(requests), self.model.get_output_embeddings())

    def enable_gradient_checkpointing(self) -> None:
        for module in (self.model.llm, self.model.vpm):
            module.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            module.train()  # the library computes nothing anew in models that are not being trained

    # --- encoding and generation -------------------------------------------------------------

    @torch.inference_mode()
    @enough_for_work()
    def encode(self, requests: Sequence[Request]) -> list[Tensor]:
        groups = _batches(requests, ENCODING_BATCH_SIZE)
        return [hidden.cpu() for group in groups for hidden, _ in self._states(group)]

    @torch.inference_mode()
    def describe(
        self, requests: Sequence[Request], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Delta | Generation]:
        self._check_questions(requests)
        yield from generate_in_groups(_batches(requests, self._rows_at_once()), self._generation_batch, stop)

    def _rows_at_once(self) -> int:
        """As many conversations as there is memory for now."""
        free = room(self.model.get_input_embeddings().weight.device)
        images = images_at_once(self.model.config, self.model.dtype, free, self.slicing)
        return min(GENERATION_BATCH_SIZE, len(Aspect) * images)

    def _generation_batch(self, requests: Sequence[Request], first: int) -> GenerationBatch:
        conversations = [c for request in requests for c in request.conversations]
        ready, questions = self.chat.ready, [c.describe("").turns[-1] for c in conversations]
        state = self._begin(requests)
        state.append(*padded([[*tokens.ids, *ready] for tokens in self._tokens(requests)], left=True))
        return GenerationBatch(
            state,
            self.model.get_output_embeddings(),
            self.chat,
            closings=[[*self.chat.next_question(question), *ready] for question in questions],
            header=len(ready),
            limit=MAX_NEW_TOKENS,
            first=first,
        )

    def check_elements(self, image: Image.Image, elements: Sequence[PromptElement]) -> list[CheckedElement]:
        return check_by_questions(self, image, elements)

    @torch.inference_mode()
    @enough_for_work()
    def next_token_logits(self, image: Image.Image, conversations: Sequence[Conversation]) -> Tensor:
        """See `element_questions.AnswersQuestions`."""
        rows = self._rows_at_once()
        tokens = self._tokens([Request(image, tuple(conversations))])
        questions = [[*each.ids, *self.chat.ready] for each in tokens]
        begun = self._begin([Request(image, tuple(conversations[:1]))])
        return logits_after(begun, questions, self.model.get_output_embeddings(), rows)

    def fits(self, prompt: str) -> bool:
        questions = [self.chat.tokens(Conversation.open(aspect, prompt), True).ids for aspect in Aspect]
        return max(map(len, questions)) <= MAX_QUESTION_TOKENS

    def _check_questions(self, requests: Sequence[Request]) -> None:
        longest = max(len(tokens.ids) for tokens in self._tokens(requests))
        if longest > MAX_QUESTION_TOKENS:
            raise InputError(
                f"The prompt is too long for this model: with the question it has {longest:,} tokens, and "
                f"{MAX_QUESTION_TOKENS:,} can be read. Shorten it."
            )

    def _states(self, requests: Sequence[Request]) -> list[tuple[Tensor, ChatTokens]]:
        """Forward whole conversations: hidden states [L, d] of each and the tokens that they end with."""
        prefixes, owners = self._prefixes(requests)
        rows = self._tokens(requests)
        embedded = [
            torch.cat([prefixes[owner], self.model.embed(self._tensor(row.ids))])
            for owner, row in zip(owners, rows, strict=True)
        ]
        inputs, own = _right_padded(embedded)
        hidden = self.model.llm.model(
            inputs_embeds=inputs, attention_mask=own, use_cache=False
        ).last_hidden_state
        return [
            (states[: len(row)], tokens) for states, row, tokens in zip(hidden, embedded, rows, strict=True)
        ]

    def _begin(self, requests: Sequence[Request]) -> DecoderState:
        """The state after the prefixes, each computed once; a row for each conversation."""
        prefixes, owners = self._prefixes(requests)
        embedded, own = _right_padded(prefixes)
        llm, cache = self.model.llm.model, DynamicCache(config=self.model.llm.config)
        positions = (own.cumsum(1) - 1).clamp_min(0)
        hidden = llm(
            inputs_embeds=embedded,
            attention_mask=own,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return DecoderState(library_forward(llm), cache, hidden, own, positions).select(self._tensor(owners))

    def _prefixes(self, requests: Sequence[Request]) -> tuple[list[Tensor], list[int]]:
        """Embedded tokens [P, d] up to the image's end, once for conversations with the same vision side.

        Also, for each conversation, the number of its prefix.
        """
        prefixes: list[Tensor] = []
        owners: list[int] = []
        for request in requests:
            slices = sliced(request.image, self.slicing) if request.image else None
            numbers: dict[VisionTower, int] = {}
            for conversation in request.conversations:
                vision_tower = self._vision_tower_of(conversation.aspect)
                if vision_tower not in numbers:
                    numbers[vision_tower] = len(prefixes)
                    prefixes.append(self._prefix(slices, vision_tower))
                owners.append(numbers[vision_tower])
        return prefixes, owners

    def _prefix(self, slices: Slices | None, vision_tower: VisionTower) -> Tensor:
        if slices is None:
            return self.model.embed(self._tensor(self.chat.begin))
        image = self.chat.image(slices.grid, self.model.config.query_num)
        ids = self._tensor(self.chat.begin + image)
        return self.model.embed(ids, vision_tower(slices), ids == self.chat.placeholder)

    def _vision_tower_of(self, aspect: Aspect | None) -> VisionTower:
        if not self.vision_towers:
            return self.model.vision_tower
        if aspect not in self.vision_towers:
            raise InputError(
                f"This model was fine-tuned for each aspect apart: for {', '.join(self.vision_towers)}, "
                f"not for {aspect or 'captions'}."
            )
        return self.vision_towers[aspect]

    def _tokens(self, requests: Sequence[Request]) -> list[ChatTokens]:
        return [
            self.chat.tokens(conversation, after_image=request.image is not None)
            for request in requests
            for conversation in request.conversations
        ]

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        """Whole numbers where the language model begins."""
        return torch.tensor(numbers, device=self.model.get_input_embeddings().weight.device)


def _batches(requests: Sequence[Request], rows: int) -> Iterator[list[Request]]:
    return batched_by_size(requests, rows, lambda request: len(request.conversations))


def _right_padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows [L_i, d] -> [rows, longest, d], and 1 where they are a row's own."""
    own = pad_sequence([row.new_ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return pad_sequence(list(rows), batch_first=True), own


def _has(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).exists() for name in names)


def with_adapter(module: ModuleT, folder: Path, name: str | None = None) -> ModuleT:
    """A copy of the module with the adapter of a folder, if there is one; shares all other tensors with it.

    Raises WeightsError for an adapter that is damaged, or of another base.
    """
    foreign = "another base than this MiniCPM-Llama3-V 2.5"
    return load_adapter(sharing_copy(module), folder, widen=True, name=name, foreign=foreign)


def _vision_tower(base: VisionTower, folder: Path) -> VisionTower:
    """The vision side as a folder has trained it."""
    vpm, resampler = with_adapter(base.vpm, folder / VISION_ADAPTER_FOLDER), base.resampler
    if (folder / RESAMPLER_FILE).exists():
        resampler = copy.deepcopy(resampler)
        try:
            resampler.load_state_dict(load_file(folder / RESAMPLER_FILE))
        except (SafetensorError, RuntimeError) as error:
            raise WeightsError(
                f"{folder / RESAMPLER_FILE} is damaged, or of another base: {reason(error)}."
            ) from error
    return VisionTower(vpm, resampler)
