"""Llama 3's chat markup with the places that images take, as MiniCPM-V 2.5 was published and trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from m3agiqa.aspects import RATING_WORDS
from m3agiqa.conversation import Conversation, Turn
from m3agiqa.errors import WeightsError

BEGIN, END, END_OF_TEXT = "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"
HEADER, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"
IMAGE, IMAGE_END = "<image>", "</image>"
SLICE, SLICE_END = "<slice>", "</slice>"
PLACE = "<unk>"
MARKS = (BEGIN, END, END_OF_TEXT, HEADER, HEADER_END, IMAGE, IMAGE_END, SLICE, SLICE_END, PLACE)
TOKENIZER_FILE = "tokenizer.json"
MAX_QUESTION = 1024  # tokens
MAX_NEW_TOKENS = 256  # of a description; the longest teacher description has 75; the base model would go on


@dataclass(frozen=True)
class Tokens:
    """Token ids; `answer` numbers the assistant's turns, 0 elsewhere."""

    ids: list[int]
    answer: list[int]


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
    missing = [mark for mark in MARKS if mark not in known]
    if missing:
        raise WeightsError(
            f"{path} is not the tokenizer of MiniCPM-Llama3-V 2.5: it does not know {', '.join(missing)}."
        )
    return tokenizer


class Chat:
    """Conversations as token ids. The image comes first, so that those about it share a beginning:

    <|begin_of_text|> user: <image> … </image> <slice> … </slice> \\n question <|eot_id|> assistant: answer …
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.begin = [*self._marked(BEGIN), *self._header("user")]
        self.ready = self._header("assistant")
        """What stands before each answer."""
        self.end: int = tokenizer.convert_tokens_to_ids(END)
        self.ends = {self.end, tokenizer.convert_tokens_to_ids(END_OF_TEXT)}
        """What the model may end an answer with."""
        self.place: int = tokenizer.convert_tokens_to_ids(PLACE)

    def image(self, grid: tuple[int, int] | None, queries: int) -> list[int]:
        """Places for an overview and for a grid (columns, rows) of slices, with `place` at each of them."""
        view = IMAGE + PLACE * queries + IMAGE_END
        if grid is None:
            return self._marked(view)
        columns, rows = grid
        return self._marked(view + SLICE + "\n".join([view * columns] * rows) + SLICE_END)

    def tokens(self, conversation: Conversation, after_image: bool) -> Tokens:
        """All turns, without `begin` and the image; nothing follows the last turn's end."""
        first, *others = conversation.turns
        question = "\n" + first.content.rstrip() if after_image else first.content.strip()
        ids = [*self.say(question), self.end]
        answer = [0] * len(ids)
        for turn in others:
            header, said = self._turn(turn)
            number = 0 if turn.role == "user" else max(answer) + 1
            ids += header + said
            answer += [0] * len(header) + [number] * len(said)
        return Tokens(ids, answer)

    @property
    def words(self) -> list[int]:
        """The first tokens of the rating words."""
        return [self.say(word)[0] for word in RATING_WORDS]

    def next_question(self, turn: Turn) -> list[int]:
        """What follows an answer's words: its end, and the user's next turn."""
        header, said = self._turn(turn)
        return [self.end, *header, *said]

    def say(self, text: str) -> list[int]:
        """What users and models wrote; it must not become chat markup."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids))

    def _turn(self, turn: Turn) -> tuple[list[int], list[int]]:
        return self._header(turn.role), [*self.say(turn.content.strip()), self.end]

    def _header(self, role: str) -> list[int]:
        return self._marked(f"{HEADER}{role}{HEADER_END}\n\n")

    def _marked(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
