"""Errors that are meant for the user: each message is a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable


class M3AgiqaError(Exception):
    """Base of all errors whose message can be shown to a user as it is.

    `options` are those that the message advises: each stands in it as its name in braces, with a value, or ""
    for none. Front ends name options in different ways.
    """

    def __init__(self, message: str = "", **options: str) -> None:
        self.message, self.options = message, options
        super().__init__(self.worded(_command_line_option))

    def worded(self, option: Callable[[str, str], str]) -> str:
        """The message with `option(name, value)` for each option that it advises."""
        text = self.message
        for name, value in self.options.items():
            text = text.replace(f"{{{name}}}", option(name, value))
        return text


class InputError(M3AgiqaError):
    """What the user gave cannot be assessed (image, prompt, file, option)."""


class WeightsError(M3AgiqaError):
    """A weight file is missing, damaged or cannot be fetched."""


class TooLittleMemory(WeightsError):
    """A model does not fit into the memory that is free."""


class Stopped(M3AgiqaError):
    """The run was stopped on request."""


def raise_if_stopped(stop: Callable[[], bool]) -> None:
    """Raises Stopped once `stop` answers True."""
    if stop():
        raise Stopped("Stopped on request.")


def _command_line_option(name: str, value: str) -> str:
    if not value:
        return f"--{name}"
    return f"--{name} {value} (in the app, M3AGIQA_{name.upper()}={value})"


def reason(error: Exception) -> str:
    """What a library's error says, in one line; of tensors that do not fit, which torch lists, the first."""
    message = str(error).split("\n\t")[:2][-1]
    return " ".join(message.split()).rstrip(".")
