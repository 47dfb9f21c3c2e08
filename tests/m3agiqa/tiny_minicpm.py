"""A MiniCPM small enough for tests: two layers a side, random weights, bytes for tokens, real slicing."""

import json
from pathlib import Path
from string import ascii_letters

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from m3agiqa.backbones.minicpm.chat import SPECIAL_TOKENS, TOKENIZER_FILE
from m3agiqa.backbones.minicpm.model import MiniCPMV, MiniCPMVConfig

PUBLISHED_LORA = r"llm\..*layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj)"
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
CONFIG = {
    "model_type": "minicpmv",
    "version": "2.5",
    "architectures": ["MiniCPMV"],
    "auto_map": {"AutoModel": "modeling_minicpmv.MiniCPMV"},
    "torch_dtype": "float32",
    "vocab_size": len(LETTERS) + len(SPECIAL_TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "initializer_range": 0.2,
    "query_num": 96,
    "slice_config": {"max_slice_nums": 9, "patch_size": 14, "model_type": "minicpmv"},
    "vision_config": {
        "model_type": "idefics2",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 980,
        "patch_size": 14,
    },
}


def tokenizer() -> Tokenizer:
    """Bytes are the tokens, beside the published marks."""
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(LETTERS)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIAL_TOKENS])
    return made


def tiny_model() -> MiniCPMV:
    """The same weights every time. It says nothing but letters, and never ends by itself."""
    torch.manual_seed(0)
    model = MiniCPMV(MiniCPMVConfig(**{k: v for k, v in CONFIG.items() if k != "model_type"}))
    known = tokenizer()
    spoken = {known.token_to_id(letter) for letter in ascii_letters}
    head = model.llm.lm_head.weight.data
    first, second = head[known.token_to_id("a")], head[known.token_to_id("b")]
    silent = torch.tensor([i for i in range(len(head)) if i not in spoken])
    head[silent] = (first + second) / 2  # never above the higher of the two
    return model.eval().requires_grad_(False)


def write_base(folder: Path, shards: int = 1) -> Path:
    """A folder as it is published."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer().save(str(folder / TOKENIZER_FILE))
    weights = {name: value.contiguous() for name, value in tiny_model().state_dict().items()}
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    names = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        own = dict(list(weights.items())[number::shards])
        save_file(own, folder / name)
        names |= dict.fromkeys(own, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def published_adapter(folder: Path, seed: int, kind: str = "safetensors") -> MiniCPMV:
    """An adapter like the authors', with PEFT as they used it; returns the model as it was trained."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=PUBLISHED_LORA,
        modules_to_save=["embed_tokens", "resampler", "vpm"],
        init_lora_weights=False,
    )
    model = tiny_model()
    torch.manual_seed(seed)
    trained = get_peft_model(model, config)
    for name, parameter in trained.named_parameters():
        if "modules_to_save" in name and "embed_tokens" not in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    trained.save_pretrained(folder, safe_serialization=kind == "safetensors")
    return trained.eval()
