"""MiniCPM-Llama3-V 2.5 with random weights, so that nothing has to be downloaded to measure it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from m3agiqa.backbones.adapters import PEFT_PREFIX, WEIGHTS_FILE
from m3agiqa.backbones.minicpm import MiniCPMBackbone
from m3agiqa.backbones.minicpm.chat import SPECIAL_TOKENS
from m3agiqa.backbones.minicpm.memory import LORA_RANK
from m3agiqa.backbones.minicpm.model import MiniCPMV, MiniCPMVConfig
from m3agiqa.backbones.minicpm.slicing import Slicing
from m3agiqa.predictor.config import PredictorConfig
from m3agiqa.predictor.model import Predictor

COPIED = ("vpm.", "resampler.", "llm.model.embed_tokens.")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def random_backbone(
    config: MiniCPMVConfig, slicing: Slicing, texts: Iterable[str], device: str, dtype: torch.dtype
) -> MiniCPMBackbone:
    """The model, made on its device. It never ends by itself, and what it says are numbers: its tokens.

    `texts` are what it will be asked.
    """
    tokenizer, known = numbers_for_tokens(texts, config.vocab_size)
    torch.manual_seed(0)
    with torch.device(device):
        model = MiniCPMV._from_config(config, dtype=dtype).eval().requires_grad_(False)
    head = model.get_output_embeddings().weight
    head[:known] = 0  # below the likeliest of so many others
    head[-len(SPECIAL_TOKENS) :] = 0
    return MiniCPMBackbone(model, tokenizer, slicing)


def numbers_for_tokens(texts: Iterable[str], size: int) -> tuple[PreTrainedTokenizerFast, int]:
    """A tokenizer of this size that knows the words of the texts, and how many tokens it has for these.

    The published marks come last; each token in between is its own number, so that a description tells which
    tokens it is made of.
    """
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = bytewise, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL_TOKENS), initial_alphabet=bytewise.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*texts, "user assistant"], trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    known = len(learned["vocab"])
    space, _ = bytewise.pre_tokenize_str(" ")[0]
    numbers = {f"{space}{token}": token for token in range(known, size - len(SPECIAL_TOKENS))}
    tokenizer.model = models.BPE(learned["vocab"] | numbers, [tuple(pair) for pair in learned["merges"]])
    tokenizer.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in SPECIAL_TOKENS]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer), known


def random_predictor(vocabulary: int, positions: int) -> Predictor:
    """The paper's, over the vocabulary, for so many positions; the same one at every call."""
    torch.manual_seed(1)
    config = PredictorConfig(vocabulary, projection="vocab", context_length=positions)
    return Predictor(config).eval().requires_grad_(False)


def write_random_adapter(model: MiniCPMV, folder: Path) -> None:
    """An adapter such as the authors published: LoRA for attention, copies of what else was trained."""
    torch.manual_seed(2)
    weights = {name: 1.01 * value for name, value in model.state_dict().items() if name.startswith(COPIED)}
    for name, module in model.llm.named_modules(prefix="llm"):
        if name.endswith(ATTENTION):
            rows, columns = module.weight.shape
            weights[f"{name}.lora_A.weight"] = 0.01 * torch.randn(LORA_RANK, columns)
            weights[f"{name}.lora_B.weight"] = 0.01 * torch.randn(rows, LORA_RANK)
    named = {PEFT_PREFIX + name: value.cpu().contiguous() for name, value in weights.items()}
    save_file(named, folder / WEIGHTS_FILE)
    layers = rf"llm\..*layers\.\d+\.self_attn\.({'|'.join(ATTENTION)})"
    LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=layers).save_pretrained(folder)
