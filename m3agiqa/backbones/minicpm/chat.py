"""Llama 3's chat markup with the places that images take, as MiniCPM-V 2.5 was published and trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from m3agiqa.aspects import RATING_WORDS
from m3agiqa.backbones.chat import ChatTokens
from m3agiqa.conversation import Conversation, Turn
from m3agiqa.errors import WeightsError

BEGIN_OF_TEXT, END_OF_TURN, END_OF_TEXT = "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"
HEADER_START, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"
IMAGE_START, IMAGE_END = "<image>", "</image>"
SLICE_START, SLICE_END = "<slice>", "</slice>"
IMAGE_PLACEHOLDER = "<unk>"
SPECIAL_TOKENS = (
    *(BEGIN_OF_TEXT, END_OF_TURN, END_OF_TEXT, HEADER_START, HEADER_END),
    *(IMAGE_START, IMAGE_END, SLICE_START, SLICE_END, IMAGE_PLACEHOLDER),
)
TOKENIZER_FILE = "tokenizer.json"
MAX_QUESTION_TOKENS = 1024  # tokens
MAX_NEW_TOKENS = 256  # of a description; the longest teacher description has 75; the base model would go on


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model's folder. Raises WeightsError where it is missing or another model's."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise WeightsError(
            f"{folder} has no {TOKENIZER_FILE}. Download it from the place where the weights come from."
        )
    try:
        # Not by its class, as the published settings name one that comes with the model's own code.
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), clean_up_tokenization_spaces=False)
    except Exception as error:  # the library in Rust raises nothing more specific
        raise WeightsError(f"{path} cannot be read: {error}. Download it anew.") from error
    known = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    missing = [mark for mark in SPECIAL_TOKENS if mark not in known]
    if missing:
        raise WeightsError(
            f"{path} is not the tokenizer of MiniCPM-Llama3-V 2.5: it does not know {', '.join(missing)}."
        )
    return tokenizer


class MiniCPMChat:
    """Conversations as token ids. The image comes first, so that those about it share a beginning:

    <|begin_of_text|> user: <image> … </image> <slice> … </slice> \\n question <|eot_id|> assistant: answer …
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.begin = [*self._marked(BEGIN_OF_TEXT), *self._header("user")]
        self.ready = self._header("assistant")
        """What stands before each answer."""
        self.end: int = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        self.ends = {self.end, tokenizer.convert_tokens_to_ids(END_OF_TEXT)}
        """What the model may end an answer with."""
        self.placeholder: int = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)

    def image(self, grid: tuple[int, int] | None, queries: int) -> list[int]:
        """An overview and a grid (columns, rows) of slices, `placeholder` for each of their embeddings."""
        view = IMAGE_START + IMAGE_PLACEHOLDER * queries + IMAGE_END
        if grid is None:
            return self._marked(view)
        columns, rows = grid
        return self._marked(view + SLICE_START + "\n".join([view * columns] * rows) + SLICE_END)

    def tokens(self, conversation: Conversation, after_image: bool) -> ChatTokens:
        """All turns, without `begin` and the image; nothing follows the last turn's end."""
        first, *others = conversation.turns
        question = "\n" + first.content.rstrip() if after_image else first.content.strip()
        ids = [*self.encode(question), self.end]
        answer = [0] * len(ids)
        for turn in others:
            header, content = self._turn(turn)
            number = 0 if turn.role == "user" else max(answer) + 1
            ids += header + content
            answer += [0] * len(header) + [number] * len(content)
        return ChatTokens(ids, answer)

    @property
    def rating_tokens(self) -> list[int]:
        return self.first_tokens(RATING_WORDS)

    def first_tokens(self, words: Sequence[str]) -> list[int]:
        """The first token of each word."""
        return [self.encode(word)[0] for word in words]

    def next_question(self, turn: Turn) -> list[int]:
        """What follows an answer's words: its end, and the user's next turn."""
        header, content = self._turn(turn)
        return [self.end, *header, *content]

    def encode(self, text: str) -> list[int]:
        """What users and models wrote; it must not become chat markup."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids))
        return text.lstrip()

    def _turn(self, turn: Turn) -> tuple[list[int], list[int]]:
        return self._header(turn.role), [*self.encode(turn.content.strip()), self.end]

    def _header(self, role: str) -> list[int]:
        return self._marked(f"{HEADER_START}{role}{HEADER_END}\n\n")

    def _marked(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
