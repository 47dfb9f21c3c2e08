"""A conversation in a model's own markup, as its chat template writes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from jinja2 import TemplateError
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from m3agiqa.aspects import RATING_WORDS
from m3agiqa.backbones.chat import ChatTokens
from m3agiqa.conversation import Conversation
from m3agiqa.errors import WeightsError

TOKENIZATION_BREAK = "\ue000"  # private use: where a text is cut before it is tokenized
TURN_PLACEHOLDER = "\ue001{}\ue002"  # stands for a turn's text while the template is rendered


class TemplateChat:
    """A conversation is a prefix (system prompt, image), which all about an image share, and the rest.

    Answers follow exactly what the model gets when it is to answer, so that text that it generates and text
    that it encodes become the same tokens.
    """

    def __init__(self, processor: ProcessorMixin, ends: set[int]) -> None:
        """`ends`: tokens that end an answer. Raises WeightsError if there is no chat template to be used."""
        self.processor, self.tokenizer = processor, processor.tokenizer
        template = processor.chat_template or self.tokenizer.chat_template
        self._template = template.get("default") if isinstance(template, dict) else template
        if self._template is None:
            raise WeightsError(
                "The model comes without a chat template, so it is not known how to talk with it. Take its "
                "variant for conversations (often called Instruct, Chat or it)."
            )
        self._gaps = cache(self._gaps)
        added = {id: str(token) for id, token in self.tokenizer.added_tokens_decoder.items()}
        markup = sorted((text for text in added.values() if len(text) > 1 and not text.isspace()), key=len)
        self._markup = re.compile("|".join(map(re.escape, reversed(markup))) or "(?!)")
        closing = self._encode(self._gaps(True, 2)[-1])
        self.ends = ends | (set(closing[:1]) & added.keys())

    @property
    def rating_tokens(self) -> list[int]:
        return self.first_tokens(RATING_WORDS)

    def first_tokens(self, words: Sequence[str]) -> list[int]:
        """The first token of each of some words, which begin with different letters, in an answer."""
        for lead in (self._lead(True, 1), ""):  # the space before a word may be a token of its own
            tokens = [self._encode(lead + str(word))[0] for word in words]
            if len(set(tokens)) == len(tokens):
                break
        return tokens

    def text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.lstrip()

    def begin(self, images: Sequence[Image.Image | None]) -> BatchFeature:
        """Inputs of the model up to the first question, right-padded; all with an image or all without."""
        shown = [[image] for image in images if image is not None]
        text = self._beginning(bool(shown))
        bos = self.tokenizer.bos_token
        options = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        if bos and text.startswith(bos):
            options["add_special_tokens"] = False
        texts = [text] * len(images)
        if shown:
            return self.processor(text=texts, images=shown, **options)
        return BatchFeature(dict(self.tokenizer(texts, **options)))

    def rest(self, conversation: Conversation, shown: bool) -> ChatTokens:
        """All turns; after a user turn the assistant's header follows, ready to answer."""
        turns = conversation.turns
        ids: list[int] = []
        answer: list[int] = []
        before = self._gaps(shown, 1)[0][len(self._beginning(shown)) :]
        for i, turn in enumerate(turns):
            if turn.role == "user":
                header = self._gaps(shown, i + 1)[-1]
                piece = self._encode(before + self._plain(turn.content) + header)
                numbers = [0] * len(piece)
                if i and piece[0] in self.ends:
                    numbers[0] = i // 2  # it ends the answer before
            else:
                piece = self._encode(self._lead(shown, i) + self._plain(turn.content))
                numbers = [i // 2 + 1] * len(piece)
                before = self._gaps(shown, min(i + 2, len(turns)))[i + 1]
                if i + 1 == len(turns):
                    end = [token for token in self._encode(before)[:1] if token in self.ends]
                    piece, numbers = piece + end, numbers + [i // 2 + 1] * len(end)
            ids += piece
            answer += numbers
        return ChatTokens(ids, answer)

    def _beginning(self, shown: bool) -> str:
        """Spaces belong to the word behind them, as tokenizers have it."""
        return self._gaps(shown, 1)[0].rstrip(" ")

    def _lead(self, shown: bool, turn: int) -> str:
        """Space between the header and an answer's text, which the model generates with its first word."""
        header, before = self._gaps(shown, turn)[-1], self._gaps(shown, turn + 1)[turn]
        between = before.removeprefix(header)
        return between if before.startswith(header) and not between.strip() else ""

    def _gaps(self, shown: bool, turns: int) -> list[str]:
        """What the template writes before each of so many turns and after the last."""
        messages = []
        for i in range(turns):
            content = [{"type": "image"}] if shown and i == 0 else []
            content.append({"type": "text", "text": TURN_PLACEHOLDER.format(i)})
            messages.append({"role": "assistant" if i % 2 else "user", "content": content})
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=turns % 2 == 1,
                enable_thinking=False,  # templates of models that can do without take it, others ignore it
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise WeightsError(f"The model's chat template cannot be used: {error}") from error
        gaps = []
        for i in range(turns):
            gap, placeholder, text = text.partition(TURN_PLACEHOLDER.format(i))
            if not placeholder:
                raise WeightsError("The model's chat template changes or leaves out what is said.")
            gaps.append(gap)
        return [*gaps, text]

    def _plain(self, text: str) -> str:
        """What people and models wrote must not become markup: such words are cut."""
        return self._markup.sub(
            lambda mark: mark[0][0] + TOKENIZATION_BREAK + mark[0][1:],
            text.replace(TOKENIZATION_BREAK, ""),
        )

    def _encode(self, text: str) -> list[int]:
        pieces = (
            self.tokenizer(piece, add_special_tokens=False)
            for piece in text.split(TOKENIZATION_BREAK)
            if piece
        )
        return [token for piece in pieces for token in piece["input_ids"]]
