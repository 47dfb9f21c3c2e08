"""Tiny random models of several families, in folders as the Hugging Face Hub has them."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GotOcr2ImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    SmolVLMImageProcessorPil,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

WIDTH = 32
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # small weights would not be sure of anything
    "max_position_embeddings": 2048,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}
SIGLIP = {
    **VISION,
    "model_type": "siglip_vision_model",
    "image_size": 32,
    "patch_size": 8,
    "vision_use_head": False,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": WIDTH,
}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Family(NamedTuple):
    """What a family's folder is made of."""

    specials: dict[str, str]
    """Tokens by the name that the family's processor knows them by; "" for the others, split by spaces."""
    config: Callable[[dict[str, int], int], dict[str, Any]]
    """Settings of the model, from the ids of the special tokens and the size of the vocabulary."""
    images: BaseImageProcessor
    processor: dict[str, Any]
    template: str


def _text(vocabulary: int, kind: str, **settings: Any) -> dict[str, Any]:
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return {**TEXT, **ends, "vocab_size": vocabulary, "model_type": kind, **settings}


def _qwen_tokens(ids: dict[str, int]) -> dict[str, int]:
    names = {
        "image": "image_pad",
        "video": "video_pad",
        "vision_start": "vision_start",
        "vision_end": "vision_end",
    }
    return {f"{setting}_token_id": ids[f"<|{token}|>"] for setting, token in names.items()}


FAMILIES = {
    "smolvlm": Family(
        {"image_token": "<image>", "": "<fake_token_around_image> <global-img> <row_1_col_1> <row_1_col_2>"},
        lambda ids, size: {
            "text_config": _text(size, "llama"),
            "vision_config": {**VISION, "image_size": 32, "patch_size": 8},
            "scale_factor": 2,
            "image_token_id": ids["<image>"],
        },
        SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        {"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
        "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
        "{% if message['content'][0]['type'] == 'image' %}:{% else %}{{ ': ' }}{% endif %}"
        "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
        "{% else %}<image>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}",
    ),
    "qwen2_5_vl": Family(
        {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "": "<|vision_start|> <|vision_end|>",
        },
        lambda ids, size: {
            "text_config": _text(
                size, "qwen2_5_vl_text", rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]}
            ),
            "vision_config": {**QWEN_VISION, "window_size": 32, "fullatt_block_indexes": [1]},
            **_qwen_tokens(ids),
        },
        Qwen2VLImageProcessorPil(patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}),
        {"processor_class": "Qwen2_5_VLProcessor"},
        CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    ),
    "llava_onevision": Family(
        {"image_token": "<image>", "video_token": "<video>"},
        lambda ids, size: {
            "text_config": _text(size, "qwen2"),
            "vision_config": SIGLIP,
            "image_token_index": ids["<image>"],
            "video_token_index": ids["<video>"],
            "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32]],
        },
        LlavaOnevisionImageProcessorPil(
            size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 32], [32, 64], [64, 32]]
        ),
        {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 16,
            "vision_feature_select_strategy": "full",
        },
        # As published: the header of a past answer is not quite that of one to come.
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ '\n' + part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    "gemma3": Family(
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        lambda ids, size: {
            "text_config": _text(
                size,
                "gemma3_text",
                head_dim=8,
                sliding_window=1024,
                layer_types=["sliding_attention", "full_attention"],
                query_pre_attn_scalar=8,
            ),
            "vision_config": SIGLIP,
            "mm_tokens_per_image": 4,
            "image_token_index": ids["<image_soft_token>"],
            "boi_token_index": ids["<start_of_image>"],
            "eoi_token_index": ids["<end_of_image>"],
        },
        Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        {"processor_class": "Gemma3Processor", "image_seq_length": 4},
        CHATML.replace("IMAGE", "<start_of_image>"),
    ),
    "internvl": Family(
        {
            "context_image_token": "<IMG_CONTEXT>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "video_token": "<video>",
        },
        lambda ids, size: {
            "text_config": _text(size, "qwen2"),
            "vision_config": {**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
            "image_token_id": ids["<IMG_CONTEXT>"],
            "image_seq_length": 4,
        },
        GotOcr2ImageProcessorPil(
            size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=3
        ),
        {"processor_class": "InternVLProcessor", "image_seq_length": 4},
        CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    ),
    "qwen3_vl": Family(
        {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
        lambda ids, size: {
            "text_config": _text(
                size,
                "qwen3_vl_text",
                head_dim=8,
                rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
            ),
            "vision_config": {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            **_qwen_tokens(ids),
        },
        Qwen2VLImageProcessorPil(patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}),
        {"processor_class": "Qwen3VLProcessor"},
        CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    ),
    "minicpmv4_6": Family(
        {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "image_start_token": "<image>",
            "image_end_token": "</image>",
            "slice_start_token": "<slice>",
            "slice_end_token": "</slice>",
            "image_id_start_token": "<image_id>",
            "image_id_end_token": "</image_id>",
        },
        lambda ids, size: {
            "text_config": _text(
                size,
                "qwen3_5_text",
                head_dim=8,
                layer_types=["linear_attention", "full_attention"],
                linear_num_key_heads=2,
                linear_num_value_heads=2,
                linear_key_head_dim=8,
                linear_value_head_dim=8,
            ),
            "vision_config": {**VISION, "image_size": 64, "patch_size": 8},
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
        },
        MiniCPMV4_6ImageProcessorPil(scale_resolution=64, patch_size=8, max_slice_nums=2),
        {"processor_class": "MiniCPMV4_6Processor"},
        CHATML.replace("IMAGE", "<|image_pad|>"),
    ),
}


def tiny_tokenizer(named: dict[str, str]) -> PreTrainedTokenizerFast:
    """Letters of ASCII and special tokens, so that every text has one way to be tokenized."""
    specials = ["<s>", "<|im_end|>", "<|im_start|>", *" ".join(named.values()).split()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        special_tokens=specials,
        initial_alphabet=[c for c in string.printable if c.isprintable() or c == "\n"],
    )
    tokenizer.train_from_iterator(["a ball on a table, in good light"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=specials[2:],
        extra_special_tokens={name: token for name, token in named.items() if name},
    )


def tiny_config(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    """The family's settings at a size that takes no time."""
    return AutoConfig.for_model(name, **FAMILIES[name].config(tokenizer.get_vocab(), len(tokenizer)))


def tiny_folder(name: str, folder: Path) -> Path:
    """A folder with a random model of a family, its tokenizer and the settings of its processor."""
    family = FAMILIES[name]
    tokenizer = tiny_tokenizer(family.specials)
    config = tiny_config(name, tokenizer)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).float()
    tokenizer.save_pretrained(folder)
    family.images.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(family.processor))
    (folder / "chat_template.jinja").write_text(family.template)
    unsaid = [*tokenizer.added_tokens_decoder, *tokenizer.convert_tokens_to_ids([*" \n.!?"])]
    with torch.no_grad():  # it says letters alone, so that descriptions are all that was said
        model.get_output_embeddings().weight[unsaid] = 0
    model.save_pretrained(folder)
    return folder
