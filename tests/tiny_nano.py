"""A nano without its weights."""

from unittest.mock import patch

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from m3agiqa.backbones.nano import NanoBackbone, efficientnet_lite
from m3agiqa.backbones.nano.language_model import END_OF_TURN


def tiny_nano() -> NanoBackbone:
    """Bytes are the tokens; all weights are random, and the same every time."""
    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|im_start|>", END_OF_TURN]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=marks)
    config = LlamaConfig(
        vocab_size=len(letters) + len(marks),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
        attn_implementation="m3agiqa_grouped",
    )
    llm = LlamaForCausalLM(config).eval().requires_grad_(False)
    nano = NanoBackbone(tiny_vision().eval().requires_grad_(False), llm, fast)
    nano.image_encoder.connector.eval()
    return nano


def tiny_vision() -> efficientnet_lite.EfficientNetLite0:
    """Of one narrow block for each stage, whose maps are as large and deep as the real ones."""
    stages = [
        (1, kernel, stride, min(expansion, 2), channels)
        for _, kernel, stride, expansion, channels in efficientnet_lite.STAGE_SETTINGS
    ]
    with patch.object(efficientnet_lite, "STAGE_SETTINGS", stages):
        return efficientnet_lite.EfficientNetLite0()
