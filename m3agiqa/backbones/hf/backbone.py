"""Any image-text-to-text model of transformers: it generates descriptions and encodes conversations."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar, Self

import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    DynamicCache,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.adapters import load_adapter
from m3agiqa.backbones.base import Answers, Backbone, Delta, Generation, Part, Request
from m3agiqa.backbones.base_model import MODEL_FILES, BaseModel
from m3agiqa.backbones.chat import ChatTokens, answers_of
from m3agiqa.backbones.devices import check_placement, settle
from m3agiqa.backbones.element_questions import check_by_questions, logits_after
from m3agiqa.backbones.generation import GenerationBatch, generate_in_groups
from m3agiqa.backbones.hf.chat import TemplateChat
from m3agiqa.backbones.hf.modules import linear_layer_pattern, split_model
from m3agiqa.backbones.hf.processor import load_processor
from m3agiqa.backbones.kv_cache import DecoderState, library_forward, padded
from m3agiqa.backbones.memory import enough_for_work, enough_to_load, fitting
from m3agiqa.backbones.per_aspect import PerAspect, sharing_copy
from m3agiqa.backbones.placement import AS_PUBLISHED, Placement
from m3agiqa.backbones.quiet import quiet_transformers
from m3agiqa.conversation import Conversation
from m3agiqa.download.hub import folder_version
from m3agiqa.download.pypi import Progress
from m3agiqa.errors import InputError, WeightsError
from m3agiqa.grouping import batched_by_size
from m3agiqa.prompt_elements import CheckedElement, PromptElement

GENERATION_BATCH_SIZE = 24  # conversations
ENCODING_BATCH_SIZE = 8
MAX_NEW_TOKENS = 128  # the longest teacher description has 53 words
WORK_SHARE = 0.1  # of the weights' memory must be free beside them, as accelerate has it
MAX_CLOSING = 64  # tokens of the second question
SHORT_QUESTION = 256  # tokens that have room beside every image, so that its own are not counted first
VISION_ADAPTER_FOLDER = "vision-adapter"
CONNECTOR_FILE = "connector.safetensors"
ADAPTER_FOLDER = "adapter"  # of the language model


class HfBackbone:
    """One model for all aspects, or one whose adapters differ by aspect (`PerAspect`).

    Implements `base.TrainableBackbone`. Conversations about an image share its prefix. Where
    the model has recurrent layers (Qwen3.5, MiniCPM-V 4.6, LFM2-VL), which cannot skip padding, they are
    processed one after another.
    """

    name = "hf"
    revision = 1
    source: ClassVar[BaseModel | None] = None
    """The model that this class is bound to; None: checkpoints say it themselves."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, source: BaseModel) -> None:
        self.model, self.made_of = model, source
        self.anatomy = split_model(model)
        self.chat = TemplateChat(processor, _ends(model, processor))
        text = model.config.get_text_config()
        self.hidden_size: int = self.head.shape[1]
        self.vocab_size: int = self.head.shape[0]
        kinds = set(getattr(text, "layer_types", None) or ())
        self.recurrent = any("attention" not in kind or "linear" in kind for kind in kinds)
        self._checkpointing = False
        self._init_from: Path | None = None  # where training begins from

    @classmethod
    def of(cls, text: str) -> type[Self]:
        """The class bound to a model: "organisation/name", with "@revision" or not, or a folder."""
        return type(cls.__name__, (cls,), {"source": BaseModel.parse(text)})

    @classmethod
    def from_base(
        cls, source: BaseModel, progress: Progress | None = None, placement: Placement = AS_PUBLISHED
    ) -> Self:
        """The model as it was published. Raises WeightsError."""
        check_placement(placement)
        folder = source.files(progress)
        if progress:
            progress(f"Loading {source.title}", 0.0)
        try:
            model = _load_model(folder, source, placement)
            return cls(model, load_processor(folder, model.config), source.pinned(folder))
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise WeightsError(f"{source} cannot be loaded: {error}") from error

    @classmethod
    def load(
        cls, folder: Path, progress: Progress | None = None, placement: Placement = AS_PUBLISHED
    ) -> Backbone:
        """The model with the adapters of a checkpoint folder, for inference.

        A folder with sub-folders by aspect has adapters for each of them.
        """
        base = cls.from_base(cls._source(folder), progress, placement)
        trained = [aspect for aspect in Aspect if (folder / aspect).is_dir()]
        if trained:
            return PerAspect({aspect: base.sibling(folder / aspect) for aspect in trained})
        base._adapt(folder)
        return base

    def sibling(self, folder: Path) -> Self:
        """Another backbone, trained as a folder says, that shares the base weights of this one."""
        other = copy.copy(self)
        other.model = sharing_copy(self.model)
        other.anatomy = split_model(other.model)
        other._adapt(folder)
        return other

    def note_base(self, folder: Path) -> None:
        """Record of which model, and of which commit of it, the trained weights are."""
        self.made_of.write(folder)

    @classmethod
    def base_version(cls, folder: Path, fetch: bool = False) -> str:
        return folder_version(cls._source(folder).files(fetch=fetch), MODEL_FILES)

    @property
    def head(self) -> Tensor:
        return self.anatomy.language["head"].weight.cpu()

    # --- training ----------------------------------------------------------------------------

    @classmethod
    def for_training(cls, init_from: Path | None) -> Self:
        """The model, with what the folder `init_from` has of its parts."""
        backbone = cls.from_base(cls._source(init_from), placement=Placement("cpu"))
        if init_from:
            backbone._init_from = init_from
            backbone._load_connector(init_from)
        return backbone

    @property
    def parts(self) -> dict[str, Part]:
        """Without a connector where that is inside the vision tower."""
        anatomy, base, begun = self.anatomy, self.made_of.title, self._init_from
        vision = linear_layer_pattern(anatomy.vision)
        language = linear_layer_pattern(anatomy.language["model"])
        language = "|".join(rf"model\.{name}" for name in language.split("|"))
        parts = {
            "vision": Part.adapted(anatomy.vision, VISION_ADAPTER_FOLDER, vision, base, begun),
            "connector": Part(anatomy.connector, CONNECTOR_FILE, base=base),
            "language": Part.adapted(anatomy.language, ADAPTER_FOLDER, language, base, begun),
        }
        return {name: part for name, part in parts.items() if any(True for _ in part.module.parameters())}

    def answers(self, requests: Sequence[Request]) -> Answers:
        return answers_of(self._states(requests), self._logits)

    def enable_gradient_checkpointing(self) -> None:
        self.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        for layer in self.model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.training = (
                    True  # not what is inside of it; in a frozen part nothing is made anew otherwise
                )
        self._checkpointing = True

    # --- encoding and generation -------------------------------------------------------------

    @torch.inference_mode()
    @enough_for_work()
    def encode(self, requests: Sequence[Request]) -> list[Tensor]:
        batches = self._batches(requests, ENCODING_BATCH_SIZE)
        return [states.cpu() for batch in batches for states, _ in self._states(batch)]

    @torch.inference_mode()
    def describe(
        self, requests: Sequence[Request], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Delta | Generation]:
        yield from generate_in_groups(
            self._batches(requests, GENERATION_BATCH_SIZE), self._generation_batch, stop
        )

    def _generation_batch(self, requests: Sequence[Request], first: int) -> GenerationBatch:
        shown = requests[0].image is not None
        conversations = [c for request in requests for c in request.conversations]
        questions = [self.chat.rest(c, shown).ids for c in conversations]
        whole = [self.chat.rest(c.describe(""), shown).ids for c in conversations]
        state = self._begin(requests)
        self._check_length(state.mask.shape[1] + max(map(len, questions)))
        state.append(*padded(questions, left=True))
        return GenerationBatch(
            state,
            self._logits,
            self.chat,
            closings=[ids[len(asked) :] for ids, asked in zip(whole, questions, strict=True)],
            limit=MAX_NEW_TOKENS,
            can_drop=not self.recurrent,
            first=first,
        )

    def check_elements(self, image: Image.Image, elements: Sequence[PromptElement]) -> list[CheckedElement]:
        return check_by_questions(self, image, elements)

    @torch.inference_mode()
    @enough_for_work()
    def next_token_logits(self, image: Image.Image, conversations: Sequence[Conversation]) -> Tensor:
        """See `element_questions.AnswersQuestions`."""
        begun = self._begin([Request(image, tuple(conversations[:1]))])
        questions = [self.chat.rest(conversation, True).ids for conversation in conversations]
        self._check_length(begun.mask.shape[1] + max(map(len, questions)))
        return logits_after(begun, questions, self._logits, 1 if self.recurrent else GENERATION_BATCH_SIZE)

    def prompt_limit(self, image: Image.Image) -> Callable[[str], bool]:
        """See `base.LimitsPromptBesideImage`."""

        @cache
        def of_image() -> int:
            return int(self.chat.begin([image])["input_ids"].shape[1])

        def fits(prompt: str) -> bool:
            questions = [self.chat.rest(Conversation.open(aspect, prompt), True).ids for aspect in Aspect]
            longest = max(map(len, questions))
            return longest <= SHORT_QUESTION or of_image() + longest <= self._max_length

        return fits

    @property
    def _max_length(self) -> float:
        """Tokens of an image and its first question, so that all that follows has room."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return limit - MAX_NEW_TOKENS - MAX_CLOSING if limit else math.inf

    def _check_length(self, length: int) -> None:
        if length > self._max_length:
            raise InputError(
                f"Image and prompt are too long for this model: with the question they have {length:,} "
                f"tokens, and {self._max_length:,} can be read. Give a smaller image, or shorten the prompt."
            )

    def _begin(self, requests: Sequence[Request]) -> DecoderState:
        """The state after the prefixes, each computed once an image; a row for each conversation."""
        inputs = self._inputs([request.image for request in requests])
        owners = [i for i, request in enumerate(requests) for _ in request.conversations]
        ids, own = inputs.pop("input_ids"), inputs.pop("attention_mask")
        positions = self._positions(ids, own, inputs)
        cache = DynamicCache(config=self.model.config)
        hidden = self.model.base_model(
            input_ids=ids,
            attention_mask=own,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **inputs,
        ).last_hidden_state
        begun = DecoderState(library_forward(self.model.base_model), cache, hidden, own, positions)
        return begun.select(self._tensor(owners))

    def _logits(self, states: Tensor) -> Tensor:
        """[N, d] -> [N, vocab]."""
        return self.anatomy.language["head"](states).float()

    def _tensor(self, numbers: list[int]) -> Tensor:
        """Whole numbers where the language model is."""
        return torch.tensor(numbers, dtype=torch.long, device=self._device)

    # --- parts -------------------------------------------------------------------------------

    def _batches(self, requests: Sequence[Request], rows: int) -> Iterator[list[Request]]:
        """Requests to be processed together: until they have so many conversations, or one each."""
        if self.recurrent:
            return ([request] for request in _apart(requests))
        return batched_by_size(requests, rows, lambda request: len(request.conversations))

    def _states(self, requests: Sequence[Request]) -> list[tuple[Tensor, ChatTokens]]:
        """Whole conversations: hidden states [L, d] and the tokens that they end with; differentiable."""
        if self.recurrent:
            return [self._states_apart([request])[0] for request in _apart(requests)]
        if self._checkpointing:
            return self._states_apart(_apart(requests))
        shown = requests[0].image is not None
        rests = [self.chat.rest(c, shown) for request in requests for c in request.conversations]
        state = self._begin(requests)
        state.append(*padded([rest.ids for rest in rests]))
        return list(zip(state.states(), rests, strict=True))

    def _states_apart(self, requests: Sequence[Request]) -> list[tuple[Tensor, ChatTokens]]:
        """`_states` of requests with one conversation each, in one forward without a cache.

        Layers whose activations are recomputed in the backward pass cannot share one.
        """
        images = [request.image for request in requests]
        rests = [self.chat.rest(request.conversations[0], images[0] is not None) for request in requests]
        inputs = self._inputs(images)
        begun = inputs.pop("input_ids")
        more, own = (each.to(self._device) for each in padded([rest.ids for rest in rests]))
        for name, value in inputs.items():
            if isinstance(value, Tensor) and value.shape == begun.shape:  # kinds of tokens: text is 0
                inputs[name] = torch.cat([value, own if name == "attention_mask" else 0 * own], dim=1)
        ids, mask = torch.cat([begun, more], dim=1), inputs.pop("attention_mask")
        positions = self._positions(ids, mask, inputs)
        hidden = self.model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **inputs
        ).last_hidden_state
        return [(h[m.bool()], rest) for h, m, rest in zip(hidden, mask, rests, strict=True)]

    def _inputs(self, images: Sequence[Image.Image | None]) -> dict[str, Tensor]:
        inputs = self.chat.begin(images).to(self._device, dtype=self.model.dtype)
        return dict(inputs)

    def _positions(self, ids: Tensor, own: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Positions of tokens; some families number those of an image in rows and columns.

        By a private method of transformers (seen in 5.24), which `generate` calls.
        """
        return self.model._prepare_position_ids_for_generation(ids, {**inputs, "attention_mask": own})

    @property
    def _device(self) -> torch.device:
        return self.anatomy.language["head"].weight.device

    def _adapt(self, folder: Path) -> None:
        self._load_connector(folder)
        load_adapter(self.anatomy.vision, folder / VISION_ADAPTER_FOLDER)
        load_adapter(self.anatomy.language, folder / ADAPTER_FOLDER)
        self.model.eval().requires_grad_(False)

    def _load_connector(self, folder: Path) -> None:
        if (folder / CONNECTOR_FILE).exists():
            self.anatomy.connector.load_state_dict(load_file(folder / CONNECTOR_FILE))

    @classmethod
    def _source(cls, folder: Path | None) -> BaseModel:
        """The model that a checkpoint was made of, or that this class is bound to. Raises WeightsError."""
        folders = [folder, *(folder / aspect for aspect in Aspect)] if folder else []
        recorded = next(filter(None, map(BaseModel.read, folders)), None)
        if recorded is None and cls.source is None:
            raise WeightsError(
                "It is not said which model is meant. Write backbone: hf:organisation/name, with a name of "
                "the Hugging Face Hub, or a folder after the colon."
            )
        if recorded and cls.source and recorded.model != cls.source.model:
            raise WeightsError(
                f"{folder} was made of {recorded.model}, so it does not go with {cls.source.model}."
            )
        return recorded or cls.source


def _apart(requests: Sequence[Request]) -> list[Request]:
    return [Request(request.image, (c,)) for request in requests for c in request.conversations]


def _load_model(folder: Path, source: BaseModel, placement: Placement) -> PreTrainedModel:
    """Raises WeightsError for a folder that has no image-text-to-text model, or not all of it."""
    settings = folder / "config.json"
    if not settings.exists():
        raise WeightsError(f"{source} is no model of transformers: it has no config.json.")
    kind = json.loads(settings.read_text(encoding="utf-8")).get("model_type")
    if kind not in CONFIG_MAPPING_NAMES:
        raise WeightsError(
            f"{source} is of the type {kind}, which transformers {transformers.__version__} does not have. "
            "Upgrade it with `pip install -U transformers`; code that comes with a model is not run."
        )
    config = AutoConfig.from_pretrained(folder)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise WeightsError(f"{source} is of the type {kind}, which does not write text about images.")
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    dtype = getattr(torch, source.dtype) if source.dtype else config.get_text_config().dtype or torch.float32
    work = int(WORK_SHARE * empty.num_parameters() * dtype.itemsize)
    placed = fitting(source.title, empty, split_model(empty).language["model"], dtype, placement, work)
    with enough_to_load(source.title), quiet_transformers():
        model, loading_info = AutoModelForImageTextToText.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            **{**placed, "dtype": source.dtype or "auto"},
        )
        settle(model)
    missing = sorted(loading_info["missing_keys"])
    if missing:
        raise WeightsError(
            f"{source} lacks {len(missing):,} of its weights, {missing[0]} among them. Get its files anew."
        )
    return model.eval().requires_grad_(False)


def _ends(model: PreTrainedModel, processor: ProcessorMixin) -> set[int]:
    """Tokens that end an answer."""
    declared = model.generation_config.eos_token_id if model.generation_config else None
    ends = {declared} if isinstance(declared, int) else set(declared or ())
    return (ends | {processor.tokenizer.eos_token_id}) - {None}
