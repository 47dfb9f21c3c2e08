"""Stage finetune: teach the backbone to describe and to rate, by next-token loss on its own turns.

For nano the connector and LoRA layers in the language model are trained (a 135M model needs both);
the paper's recipe of LoRA in the vision encoder alone is for backbones that already see well.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from m3agiqa.backbones.nano import ADAPTER_FOLDER, CONNECTOR_FILE, NanoBackbone
from m3agiqa.weights import SMOLLM2
from training.curriculum import Lesson
from training.progress import bar, latest_folder, replace_folder

STATE = "state"


@dataclass(frozen=True)
class FinetuneConfig:
    """Optimiser and LoRA settings; the first ones to change are the learning rates."""

    rank: int = 16
    """LoRA rank; alpha is twice the rank."""
    adapter_lr: float = 5e-4
    connector_lr: float = 2e-4
    """Lower, as the connector comes aligned (training.align)."""
    weight_decay: float = 0.01
    beta2: float = 0.95
    """Adam beta2 (paper's script)."""
    warmup: float = 0.03
    """Share of the steps in which the learning rates rise; then they fall along a cosine to a tenth."""
    rating_weight: float = 3.0
    """Weight of a second answer's tokens, the rating word, of which there are two among about sixty."""
    save_every: int = 50
    """Steps between resumable states."""
    seed: int = 0


def finetune(batches: list[list[Lesson]], aligned: Path, out: Path, config: FinetuneConfig) -> None:
    """Train on batches of lessons and leave connector and adapter in `out`; resumes from there.

    `aligned` holds the connector to begin with.
    """
    torch.manual_seed(config.seed)
    backbone = NanoBackbone.from_base()
    backbone.connector.load_state_dict(load_file(aligned / CONNECTOR_FILE))
    lora = LoraConfig(r=config.rank, lora_alpha=2 * config.rank, target_modules="all-linear")
    adapter = backbone.add_adapter(lora)
    trainer = _Trainer(backbone, adapter, len(batches), config)
    state = out / STATE
    start = trainer.restore(state)
    with (out / "log.jsonl").open("a") as log, bar(batches, "finetune", start=start) as progress:
        for step in range(start, len(batches)):
            rng = Random(f"{config.seed} {step}")
            torch.manual_seed(rng.getrandbits(32))  # of dropout, so that resuming changes nothing
            loss = trainer.step(batches[step], step, rng)
            progress.update()
            progress.set_postfix(loss=f"{loss:.3f}")
            log.write(json.dumps({"step": step, "lessons": len(batches[step]), "loss": loss}) + "\n")
            log.flush()
            if (step + 1) % config.save_every == 0 or step + 1 == len(batches):
                replace_folder(state, lambda folder, done=step + 1: trainer.save(folder, done))
    trainer.export(out)
    (out / "finetune.json").write_text(json.dumps({**asdict(config), "steps": len(batches)}, indent=2))


class _Trainer:
    def __init__(
        self, backbone: NanoBackbone, adapter: PeftModel, steps: int, config: FinetuneConfig
    ) -> None:
        self.backbone, self.adapter, self.config = backbone, adapter, config
        self.connector = backbone.connector.train()
        lora = [p for p in adapter.parameters() if p.requires_grad]
        self.parameters = [*lora, *self.connector.parameters()]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": lora, "lr": config.adapter_lr},
                {"params": self.connector.parameters(), "lr": config.connector_lr},
            ],
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
        )
        rise = max(1, round(config.warmup * steps))

        def rate(step: int) -> float:
            if step < rise:
                return (step + 1) / rise
            return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)

    def step(self, lessons: list[Lesson], step: int, rng: Random) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = conversation_loss(self.backbone, lessons, self.config.rating_weight, rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss.item()

    def save(self, folder: Path, done: int) -> None:
        save_file(get_peft_model_state_dict(self.adapter), folder / "adapter.safetensors")
        save_file(self.connector.state_dict(), folder / CONNECTOR_FILE)
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        torch.save(self.schedule.state_dict(), folder / "schedule.pt")
        (folder / "step.json").write_text(json.dumps(done))

    def restore(self, state: Path) -> int:
        """Continue from the newest whole state; returns the number of steps already done."""
        state.parent.mkdir(parents=True, exist_ok=True)
        folder = latest_folder(state)
        if folder is None:
            return 0
        set_peft_model_state_dict(self.adapter, load_file(folder / "adapter.safetensors"))
        self.connector.load_state_dict(load_file(folder / CONNECTOR_FILE))
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        self.schedule.load_state_dict(torch.load(folder / "schedule.pt", weights_only=True))
        return json.loads((folder / "step.json").read_text())

    def export(self, out: Path) -> None:
        """Connector and adapter in 16 bit, as checkpoints hold them."""
        half = {name: value.bfloat16().contiguous() for name, value in self.connector.state_dict().items()}
        save_file(half, out / CONNECTOR_FILE)
        self.adapter.save_pretrained(
            out / ADAPTER_FOLDER,
            state_dict={name: value.bfloat16() for name, value in self.adapter.state_dict().items()},
        )
        (out / ADAPTER_FOLDER / "README.md").unlink()  # PEFT's empty model card
        settings = out / ADAPTER_FOLDER / "adapter_config.json"
        facts = {**json.loads(settings.read_text()), "base_model_name_or_path": SMOLLM2.filename}
        settings.write_text(json.dumps(facts, indent=2))  # PEFT names a folder of this machine


def conversation_loss(
    backbone: NanoBackbone, lessons: list[Lesson], rating_weight: float, rng: Random
) -> Tensor:
    """Mean cross-entropy of the assistant's tokens; only their logits are ever computed."""
    _, hidden, rows = backbone.read([lesson.request(rng) for lesson in lessons])
    states, targets, weights = [], [], []
    for row, tokens in zip(hidden, rows, strict=True):
        places = torch.tensor([i for i, answer in enumerate(tokens.answer) if answer])
        states.append(row[places - 1])  # the state before a token predicts it
        targets.append(torch.tensor(tokens.ids)[places])
        answers = torch.tensor(tokens.answer)[places]
        weights.append(torch.where(answers == 2, rating_weight, 1.0))
    logits = torch.cat(states) @ backbone.head.T
    losses = F.cross_entropy(logits.float(), torch.cat(targets), reduction="none")
    weight = torch.cat(weights)
    return (losses * weight).sum() / weight.sum()
