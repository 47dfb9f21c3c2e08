"""The paper's backbone: MiniCPM-Llama3-V 2.5 with adapters, as speaker and encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedTokenizerFast

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.base import Answers, Backbone, Delta, Part, Request, Spoken
from m3agiqa.backbones.generation import Speech, speak
from m3agiqa.backbones.kv_cache import Reading
from m3agiqa.backbones.memory import enough_for_work, room
from m3agiqa.backbones.minicpm.adapters import adapted
from m3agiqa.backbones.minicpm.base_weights import BASE, BASE_FILES, base_folder
from m3agiqa.backbones.minicpm.chat import MAX_NEW_TOKENS, MAX_QUESTION, Chat, Tokens, load_tokenizer
from m3agiqa.backbones.minicpm.loading import check_room, load_model, read_config, read_slicing
from m3agiqa.backbones.minicpm.made_of import MadeOf, PublishedAdapter
from m3agiqa.backbones.minicpm.memory import Work, images_at_once
from m3agiqa.backbones.minicpm.model import MiniCPMV, Sight
from m3agiqa.backbones.minicpm.slicing import Slices, Slicing, sliced
from m3agiqa.backbones.per_aspect import PerAspect, sharing_copy
from m3agiqa.backbones.placement import AS_PUBLISHED, Placement
from m3agiqa.download.hub import version
from m3agiqa.download.pypi import Progress
from m3agiqa.errors import InputError, WeightsError, reason

SPOKEN_AT_ONCE = 24  # rows, where there is memory for them
READ_AT_ONCE = 8
VISION_LORA = r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
LANGUAGE_LORA = r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
VISION_ADAPTER_FOLDER = "vision-adapter"
RESAMPLER_FILE = "resampler.safetensors"
LANGUAGE_ADAPTER_FOLDER = "language-adapter"
PUBLISHED_ADAPTER_FOLDER = "published-adapter"
"""An adapter of the paper's authors, over the whole model."""
SPEAKING = (LANGUAGE_ADAPTER_FOLDER, PUBLISHED_ADAPTER_FOLDER)
LEARNED = (VISION_ADAPTER_FOLDER, RESAMPLER_FILE, *SPEAKING)


class MiniCPMBackbone:
    """One language model for all aspects; each aspect may have a vision side of its own.

    Hidden states are handed out on the CPU, where predictors are.
    """

    name = "minicpm"
    revision = 1

    def __init__(self, model: MiniCPMV, tokenizer: PreTrainedTokenizerFast, slicing: Slicing) -> None:
        self.model = model
        self.chat = Chat(tokenizer)
        self.slicing = slicing
        self.hidden_size: int = model.config.hidden_size
        self.vocab_size: int = model.config.vocab_size
        self.sights: Mapping[Aspect | None, Sight] = {}
        """Of aspects that do not see with the model's own."""
        self._base: Path | None = None  # where the published weights are
        self._begun_in: Path | None = None  # where training begins from

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
        only, all aspects are spoken in one batch. Published adapters of aspects may stay where they are.
        """
        made_of = MadeOf.read(folder)
        own = [aspect for aspect in Aspect if _has(folder / aspect, LEARNED)]
        places = [folder, *(folder / aspect for aspect in own)]
        copied = sum(_has(place, [PUBLISHED_ADAPTER_FOLDER]) for place in places)
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
        if any(_has(folder / aspect, SPEAKING) for aspect in own):
            return PerAspect({aspect: base.sibling(folder / aspect) for aspect in own})
        base.sights = {aspect: _sight(base.model.sight, folder / aspect) for aspect in own}
        return base

    def sibling(self, folder: Path) -> MiniCPMBackbone:
        """Another backbone, with the adapters of a folder, that shares the base weights of this one."""
        other, published = copy.copy(self), folder / PUBLISHED_ADAPTER_FOLDER
        other.model = model = (
            adapted(self.model, published) if published.is_dir() else sharing_copy(self.model)
        )
        sight = _sight(model.sight, folder)
        model.vpm, model.resampler = sight.vpm, sight.resampler
        if (folder / LANGUAGE_ADAPTER_FOLDER).is_dir():
            model.llm = adapted(model.llm, folder / LANGUAGE_ADAPTER_FOLDER)
        return other

    def published(self, adapter: PublishedAdapter, folder: Path) -> MiniCPMBackbone:
        """Another backbone, with a published adapter from a folder; shares weights as `sibling` does."""
        other = copy.copy(self)
        other.model = adapted(self.model, folder, adapter.repository)
        if adapter.max_slice_nums is not None:
            other.slicing = replace(self.slicing, max_slice_nums=adapter.max_slice_nums)
        return other

    def note_base(self, folder: Path) -> None:
        """Let what was trained say of which base it was made, and of which commit of it."""
        if self._base is not None:
            MadeOf.of(self._base).write(folder)

    @classmethod
    def base_version(cls, folder: Path, fetch: bool = False) -> str:
        return version(base_folder(revision=MadeOf.read(folder).commit, fetch=fetch), BASE_FILES)

    @property
    def head(self) -> Tensor:
        return self.model.get_output_embeddings().weight.detach().cpu()

    # --- training ----------------------------------------------------------------------------

    @classmethod
    def for_training(cls, begun: Path | None) -> MiniCPMBackbone:
        """Published weights, in bfloat16 if they have 16 bit, and the resampler as a folder has it."""
        made_of = MadeOf.read(begun) if begun else MadeOf()
        if made_of.adapters:
            raise InputError(
                f"{begun} has adapters over the whole model, which can be used and not be trained on. Start "
                "from the base instead (start: null)."
            )
        folder = base_folder(revision=made_of.commit)
        half = read_config(folder).dtype == torch.float16  # whose range gradients may leave
        backbone = cls.from_folder(folder, **({"dtype": torch.bfloat16} if half else {}))
        backbone.model.resampler.float()  # it may learn, in steps that are too small for 16 bit
        if begun and (begun / RESAMPLER_FILE).exists():
            backbone.model.resampler.load_state_dict(load_file(begun / RESAMPLER_FILE))
        backbone._begun_in = begun
        return backbone

    @property
    def parts(self) -> dict[str, Part]:
        def adapter(module: nn.Module, name: str, lora: str) -> Part:
            folder = self._begun_in / name if self._begun_in else None
            return Part(module, name, lora, BASE, folder if folder and folder.is_dir() else None)

        return {
            "vision": adapter(self.model.vpm, VISION_ADAPTER_FOLDER, VISION_LORA),
            "resampler": Part(self.model.resampler, RESAMPLER_FILE, base=BASE),
            "language": adapter(self.model.llm, LANGUAGE_ADAPTER_FOLDER, LANGUAGE_LORA),
        }

    def answers(self, requests: Sequence[Request]) -> Answers:
        states, ids, turns = [], [], []
        for hidden, start, tokens in self._read(requests):
            places = [i for i, answer in enumerate(tokens.answer) if answer]
            states.append(hidden[[start + i - 1 for i in places]])  # the state before a token predicts it
            ids += [tokens.ids[i] for i in places]
            turns += [tokens.answer[i] for i in places]
        logits = self.model.get_output_embeddings()(torch.cat(states))
        return Answers(logits, self._tensor(ids), self._tensor(turns))

    def enable_gradient_checkpointing(self) -> None:
        for module in (self.model.llm, self.model.vpm):
            module.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            module.train()  # the library computes nothing anew in models that are not being trained

    # --- reading and speaking ----------------------------------------------------------------

    @torch.inference_mode()
    @enough_for_work()
    def encode(self, requests: Sequence[Request]) -> list[Tensor]:
        groups = _groups(requests, READ_AT_ONCE)
        return [hidden.cpu() for group in groups for hidden, _, _ in self._read(group)]

    @torch.inference_mode()
    def describe(
        self, requests: Sequence[Request], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Delta | Spoken]:
        self._check_questions(requests)
        first = 0
        for group in _groups(requests, self._rows_at_once()):
            with enough_for_work():
                yield from speak(self._speech(group, first), stop)
            first += sum(len(request.conversations) for request in group)

    def _rows_at_once(self) -> int:
        """As many conversations as there is memory for now."""
        free = room(self.model.get_input_embeddings().weight.device)
        images = images_at_once(self.model.config, self.model.dtype, free, self.slicing)
        return min(SPOKEN_AT_ONCE, len(Aspect) * images)

    def _speech(self, requests: Sequence[Request], first: int) -> Speech:
        conversations = [c for request in requests for c in request.conversations]
        return Speech(
            self._begin(requests),
            self.model.get_output_embeddings(),
            self.chat,
            questions=[tokens.ids for tokens in self._tokens(requests)],
            closings=[self.chat.next_question(c.describe("").turns[-1]) for c in conversations],
            header=self.chat.ready,
            limit=MAX_NEW_TOKENS,
            first=first,
        )

    def _check_questions(self, requests: Sequence[Request]) -> None:
        longest = max(len(tokens.ids) for tokens in self._tokens(requests))
        if longest > MAX_QUESTION:
            raise InputError(
                f"The prompt is too long for this model: with the question it has {longest:,} tokens, and "
                f"{MAX_QUESTION:,} can be read. Shorten it."
            )

    def _read(self, requests: Sequence[Request]) -> list[tuple[Tensor, int, Tokens]]:
        """Forward whole conversations: each one's states [L, d], where its tokens start, and these."""
        beginnings, owners = self._beginnings(requests)
        rows = self._tokens(requests)
        embedded = [
            torch.cat([beginnings[owner], self.model.embed(self._tensor(row.ids))])
            for owner, row in zip(owners, rows, strict=True)
        ]
        padded, own = _right_padded(embedded)
        hidden = self.model.llm.model(
            inputs_embeds=padded, attention_mask=own, use_cache=False
        ).last_hidden_state
        return [
            (states[: len(row)], len(row) - len(tokens.ids), tokens)
            for states, row, tokens in zip(hidden, embedded, rows, strict=True)
        ]

    def _begin(self, requests: Sequence[Request]) -> Reading:
        """Read what conversations begin with, each beginning once; a row for each conversation."""
        beginnings, owners = self._beginnings(requests)
        embedded, own = _right_padded(beginnings)
        llm, cache = self.model.llm.model, DynamicCache(config=self.model.llm.config)
        places = (own.cumsum(1) - 1).clamp_min(0)
        hidden = llm(
            inputs_embeds=embedded,
            attention_mask=own,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return Reading(llm, cache, hidden, own, places).pick(self._tensor(owners))

    def _beginnings(self, requests: Sequence[Request]) -> tuple[list[Tensor], list[int]]:
        """Embedded tokens [P, d] up to the image's end, once for conversations that see it alike.

        Also, for each conversation, the number of its beginning.
        """
        beginnings: list[Tensor] = []
        owners: list[int] = []
        for request in requests:
            slices = sliced(request.image, self.slicing) if request.image else None
            begun: dict[Sight, int] = {}
            for conversation in request.conversations:
                sight = self._sight_of(conversation.aspect)
                if sight not in begun:
                    begun[sight] = len(beginnings)
                    beginnings.append(self._beginning(slices, sight))
                owners.append(begun[sight])
        return beginnings, owners

    def _beginning(self, slices: Slices | None, sight: Sight) -> Tensor:
        if slices is None:
            return self.model.embed(self._tensor(self.chat.begin))
        image = self.chat.image(slices.grid, self.model.config.query_num)
        ids = self._tensor(self.chat.begin + image)
        return self.model.embed(ids, sight(slices), ids == self.chat.place)

    def _sight_of(self, aspect: Aspect | None) -> Sight:
        if not self.sights:
            return self.model.sight
        if aspect not in self.sights:
            raise InputError(
                f"This model was fine-tuned for each aspect apart: for {', '.join(self.sights)}, "
                f"not for {aspect or 'captions'}."
            )
        return self.sights[aspect]

    def _tokens(self, requests: Sequence[Request]) -> list[Tokens]:
        return [
            self.chat.tokens(conversation, after_image=request.image is not None)
            for request in requests
            for conversation in request.conversations
        ]

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        """Whole numbers where the language model begins."""
        return torch.tensor(numbers, device=self.model.get_input_embeddings().weight.device)


def _groups(requests: Sequence[Request], rows: int) -> Iterator[list[Request]]:
    """Requests together, until they have so many conversations."""
    group: list[Request] = []
    for request in requests:
        group.append(request)
        if sum(len(each.conversations) for each in group) >= rows:
            yield group
            group = []
    if group:
        yield group


def _right_padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows [L_i, d] -> [rows, longest, d], and 1 where they are a row's own."""
    own = pad_sequence([row.new_ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return pad_sequence(list(rows), batch_first=True), own


def _has(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).exists() for name in names)


def _sight(base: Sight, folder: Path) -> Sight:
    """The vision side as a folder has trained it."""
    vpm, resampler = base.vpm, base.resampler
    if (folder / VISION_ADAPTER_FOLDER).is_dir():
        vpm = adapted(vpm, folder / VISION_ADAPTER_FOLDER)
    if (folder / RESAMPLER_FILE).exists():
        resampler = copy.deepcopy(resampler)
        try:
            resampler.load_state_dict(load_file(folder / RESAMPLER_FILE))
        except (SafetensorError, RuntimeError) as error:
            raise WeightsError(
                f"{folder / RESAMPLER_FILE} is damaged, or of another base: {reason(error)}."
            ) from error
    return Sight(vpm, resampler)
