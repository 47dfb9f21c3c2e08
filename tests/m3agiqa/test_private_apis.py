"""Private or undocumented parts of libraries that the backbones rely on: whichever goes is named here."""

import importlib
from functools import reduce

import pytest
import torch
from transformers import DynamicCache

from m3agiqa.backbones.cpu_precision import fast_dtype
from m3agiqa.backbones.nano.packed_decoder import packed_linear

NAMES = {
    "cpu_precision": ["torch:ops.mkldnn._is_mkldnn_bf16_supported"],
    "packed_decoder": [
        "torch:ops.mkldnn._reorder_linear_weight",
        "torch:ops.mkldnn._linear_pointwise",
    ],
    "language_model": [
        "transformers.masking_utils:eager_mask",
        "transformers.cache_utils:DynamicLayer.lazy_initialization",
        "transformers.cache_utils:DynamicLayer.get_seq_length",
    ],
    "kv_cache": ["transformers.cache_utils:Cache.reorder_cache"],
    "hf.backbone": [
        "transformers:GenerationMixin._prepare_position_ids_for_generation",
        "transformers.models.auto.configuration_auto:CONFIG_MAPPING_NAMES",
        "transformers.modeling_layers:GradientCheckpointingLayer",
    ],
    "hf.processor": [
        "transformers:ProcessorMixin.check_argument_for_proper_class",
        "transformers:ProcessorMixin.get_attributes",
        "transformers.models.auto.processing_auto:processor_class_from_name",
    ],
    "adapters": ["peft.tuners.lora:LoraModel.merge_and_unload", "peft.tuners.lora:LoraLayer.get_base_layer"],
    "per_aspect": ["accelerate.hooks:AlignDevicesHook", "accelerate.hooks:SequentialHook"],
}


@pytest.mark.parametrize(("user", "name"), [(user, name) for user, names in NAMES.items() for name in names])
def test_what_the_backbones_rely_on_is_there(user: str, name: str) -> None:
    module, _, path = name.partition(":")
    try:
        reduce(getattr, path.split("."), importlib.import_module(module))
    except AttributeError:
        pytest.fail(f"{name} is gone, which m3agiqa.backbones.{user} relies on")


def test_accelerate_keeps_offloaded_tensors_where_they_are_shared_from() -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    layer = torch.nn.Linear(2, 2)
    add_hook_to_module(layer, AlignDevicesHook("cpu"))
    hook = layer._hf_hook
    assert {"weights_map", "tied_params_map", "offload", "execution_device"} <= vars(hook).keys()


def test_a_cache_is_a_list_of_layers_with_keys_and_values() -> None:
    cache = DynamicCache()
    states = torch.randn(3, 2, 4, 8)
    cache.update(states, states + 1, 0)
    cache.reorder_cache(torch.tensor([2, 0]))
    assert torch.equal(cache.layers[0].keys, states[[2, 0]])
    assert torch.equal(cache.layers[0].values, states[[2, 0]] + 1)


def test_packed_weights_multiply_as_others() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, 8, generator=generator).bfloat16() for rows in (16, 3))
    torch.testing.assert_close(packed_linear(weight)(x), x @ weight.T, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("dtype", {torch.float32, fast_dtype()})
def test_each_row_is_multiplied_as_if_it_were_alone(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, 576, generator=generator).to(dtype) for rows in (960, 300))
    product = packed_linear(weight)
    together = product(x)
    for count in (1, 2, 3, 5, 31, 33, 100, 255, 257):
        assert torch.equal(product(x[:count]), together[:count])
