"""What modules hold in memory, counted on the tensors themselves."""

from collections.abc import Iterator
from itertools import chain

from torch import Tensor, nn


def held_bytes(*modules: nn.Module) -> int:
    """Bytes of all tensors, bitsandbytes' own among them; what is shared counts once."""
    held = {tensor.data_ptr(): tensor.nbytes for module in modules for tensor in _held(module)}
    return sum(held.values())


def _held(module: nn.Module) -> Iterator[Tensor]:
    yield from chain(module.parameters(), module.buffers())
    for layer in module.modules():
        if type(layer).__name__ == "Linear8bitLt":
            yield layer.state.SCB
        elif type(layer).__name__ == "Linear4bit":
            state = layer.weight.quant_state
            yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
