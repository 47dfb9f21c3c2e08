"""Errors that are meant for the user: each message is a sentence that says what to do."""


class M3AgiqaError(Exception):
    """Base of all errors whose message can be shown to a user as it is."""


class InputError(M3AgiqaError):
    """What the user gave cannot be assessed (image, prompt, file, option)."""


class WeightsError(M3AgiqaError):
    """A weight file is missing, damaged or cannot be fetched."""


class TooLittleMemory(WeightsError):
    """A model does not fit into the memory that is free."""


class Stopped(M3AgiqaError):
    """The run was stopped on request."""


def reason(error: Exception) -> str:
    """What a library's error says, in one line; of tensors that do not fit, which torch lists, the first."""
    message = str(error).split("\n\t")[:2][-1]
    return " ".join(message.split()).rstrip(".")
