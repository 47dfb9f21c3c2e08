"""Stage finetune: teach a backbone to describe and to rate, by next-token loss on its own turns.

The paper puts LoRA into the vision encoder alone, which suits backbones that describe images well already.
For nano, connector and language model are trained: a 135M model needs both. Accelerate runs the stage on
one CPU, one GPU or many (see training/configs/accelerate).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import DistributedType
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from m3agiqa.aspects import Aspect
from m3agiqa.backbones.adapters import without_peft_notice
from m3agiqa.backbones.base import NotesBase, Part, Request, TrainableBackbone
from m3agiqa.backbones.cpu_precision import has_fast_bfloat16
from m3agiqa.backbones.loading import backbone_class
from m3agiqa.errors import InputError
from m3agiqa.files import latest_folder, replace_folder
from m3agiqa.json_lines import write_json
from training.parallel import progress_bar
from training.stages.curriculum import Lesson

STATE_FOLDER = "state"
DONE_FILE = "finetune.json"


@dataclass(frozen=True)
class FinetuneConfig:
    """What is tuned, and optimiser settings; the first ones to change are the learning rates."""

    tune: tuple[str, ...] = ("vision",)
    """Parts of the backbone that learn. The paper: its vision encoder; nano: connector and language."""
    aspects: tuple[Aspect, ...] = ()
    """One adapter for each of these, in a sub-folder of its name; none: one adapter for all aspects."""
    rank: int = 16
    """LoRA rank of new adapters; those that a checkpoint brings learn on with their own."""
    alpha: int | None = None
    """LoRA's updates are scaled by alpha / rank; None: twice the rank."""
    dropout: float = 0.0
    """Of what goes into LoRA layers; helps where there are few samples."""
    adapter_lr: float = 5e-4
    """Learning rate of LoRA layers (paper: 2e-6)."""
    full_lr: float = 2e-4
    """Of parts that are trained whole. Lower for nano's connector, which comes aligned (nano.align)."""
    weight_decay: float = 0.01
    """Paper: 0.1."""
    beta2: float = 0.95
    """Adam beta2 (paper's script)."""
    warmup: float = 0.03
    """Share of the steps in which the learning rates rise (paper: 0.01); then they fall along a cosine."""
    final_rate: float = 0.1
    """Share of the learning rates that is left at the end of the cosine (paper: 0)."""
    rating_weight: float = 3.0
    """Weight of a second answer's tokens, the rating word, of which there are two among about sixty."""
    gradient_accumulation: int = 1
    """Batches that make one step; raise it where a whole batch does not fit into memory."""
    gradient_checkpointing: bool = False
    """Compute activations anew in the backward pass: about a third slower, in much less memory."""
    mixed_precision: str = "bf16"
    """"no", "bf16" (on a CPU, only if that is quick there), or "fp16" for GPUs that lack bfloat16."""
    save_every: int = 50
    """Steps between resumable states."""
    seed: int = 0


def finetune(
    batches: list[list[Lesson]], begun: Path | None, out: Path, config: FinetuneConfig, name: str = "nano"
) -> None:
    """Fine-tune a backbone by name and leave what it learned in `out`; resumes from there.

    `begun` holds what an earlier stage has left (nano's aligned connector), or is a checkpoint whose
    adapters learn on. Raises InputError if the backbone has no such part, or no lesson is about an aspect.
    """

    def build(folder: Path | None) -> TrainableBackbone:
        return backbone_class(name).for_training(folder)

    if begun:
        _check_begun(begun, config.aspects)
    for aspect in config.aspects:
        if not (out / aspect / DONE_FILE).exists():
            own = begun / aspect if begun and (begun / aspect).is_dir() else begun
            lessons, state = about(batches, aspect), out / STATE_FOLDER / aspect
            teach(partial(build, own), lessons, out / aspect, config, state)
    if not config.aspects:
        teach(partial(build, begun), batches, out, config, out / STATE_FOLDER)
    elif PartialState().is_main_process:
        write_json(out / DONE_FILE, asdict(config))


def _check_begun(begun: Path, aspects: Sequence[Aspect]) -> None:
    """Raises InputError where one adapter should begin with those of several aspects."""
    own = [aspect for aspect in Aspect if (begun / aspect).is_dir()]
    if own and not (aspects and set(aspects) <= set(own)):
        raise InputError(
            f"{begun} has one adapter each for {', '.join(own)}. Set finetune.aspects to those that learn on."
        )


def about(batches: list[list[Lesson]], aspect: Aspect) -> list[list[Lesson]]:
    """What the batches teach about an aspect, and their captions. Raises InputError if that is nothing."""
    chosen = []
    for batch in batches:
        lessons = [
            replace(lesson, conversations=kept)
            for lesson in batch
            if (kept := tuple(c for c in lesson.conversations if c.aspect in (aspect, None)))
        ]
        if lessons:
            chosen.append(lessons)
    if not any(c.aspect for batch in chosen for lesson in batch for c in lesson.conversations):
        raise InputError(f"No sample has a description for {aspect}, so no adapter can be made for it.")
    return chosen


def teach(
    build: Callable[[], TrainableBackbone],
    batches: list[list[Lesson]],
    out: Path,
    config: FinetuneConfig,
    state: Path,
) -> None:
    """Train one adapter on batches of lessons and leave it in `out`; resumes from the folder `state`.

    Every process of `accelerate launch` calls this with the same arguments. Each takes its share of every
    batch, and only the main one writes. Batches are all images or all text; texts are left out where the
    language model is not tuned, as nothing else could learn from them.
    """
    if "language" not in config.tune:
        batches = [batch for batch in batches if batch[0].image]
    if not batches:
        raise InputError(
            f"There is nothing to fine-tune {' and '.join(config.tune)} with: no image has a lesson."
        )
    groups = [
        range(start, min(start + config.gradient_accumulation, len(batches)))
        for start in range(0, len(batches), config.gradient_accumulation)
    ]
    accelerator = _accelerator(config)
    main = accelerator.is_main_process
    torch.manual_seed(config.seed)
    backbone = build()
    trainer = _Trainer(accelerator, backbone, len(groups), config)
    out.mkdir(parents=True, exist_ok=True)
    start = trainer.restore(state)
    with tqdm(disable=True) if not main else progress_bar(None, "finetune", len(groups), start) as progress:
        for step in range(start, len(groups)):
            loss = trainer.step(step, groups[step], batches)
            progress.update()
            progress.set_postfix(loss=f"{loss:.3f}")
            if main:
                _log(out, step=step, lessons=sum(len(batches[i]) for i in groups[step]), loss=loss)
            if (step + 1) % config.save_every == 0 or step + 1 == len(groups):
                trainer.save(state, step + 1)
    trainer.export(out)
    if main and isinstance(backbone, NotesBase):
        backbone.note_base(out)
    if main:
        write_json(out / DONE_FILE, {**asdict(config), "steps": len(groups)})
    accelerator.wait_for_everyone()


@torch.no_grad()
def mean_loss(lessons: Sequence[Lesson], folder: Path | None, config: FinetuneConfig, name: str) -> float:
    """Nats per token of the answers, under a backbone by name as fine-tuning left it in a folder."""
    learner = _Learner(backbone_class(name).for_training(folder), replace(config, tune=()))
    learner.to(PartialState().device)
    totals = [learner([lesson.request(Random(config.seed))]) for lesson in lessons]
    return float(sum(total for total, _ in totals) / sum(weight for _, weight in totals))


def rate(step: int, steps: int, config: FinetuneConfig) -> float:
    """Share of the learning rates that a step (from 0) is done with: a linear rise, then a cosine."""
    rise = max(1, round(config.warmup * steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    left = config.final_rate
    return left + (1 - left) / 2 * (1 + math.cos(math.pi * done))


def _accelerator(config: FinetuneConfig) -> Accelerator:
    # A batch of texts leaves connector and vision encoder without gradients.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    precision = config.mixed_precision
    if precision == "bf16" and PartialState().device.type == "cpu" and not has_fast_bfloat16():
        precision = "no"
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            gradient_accumulation_steps=config.gradient_accumulation,
            kwargs_handlers=[unused],
        )
    except ValueError as error:
        raise InputError(f"Fine-tuning cannot use mixed_precision {precision!r} here: {error}") from error
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError('mixed_precision "fp16" needs a GPU. On a CPU, use "bf16" or "no".')
    return accelerator


def _log(out: Path, **facts: float) -> None:
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(facts) + "\n")


class _Learner(nn.Module):
    """What Accelerate wraps: all parts of a backbone, those that are tuned made ready, and the loss."""

    def __init__(self, backbone: TrainableBackbone, config: FinetuneConfig) -> None:
        super().__init__()
        self.answers, self.rating_weight = backbone.answers, config.rating_weight
        self.parts = nn.ModuleDict()
        for name, part in backbone.parts.items():
            part.module.requires_grad_(False).eval()
            self.parts[name] = _ready(part, config, name in config.tune)
        if config.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()

    def forward(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
        """Weighted sum of the cross-entropies (nats) of all answers' tokens, and the sum of the weights."""
        answers = self.answers(requests)
        losses = F.cross_entropy(answers.logits.float(), answers.ids, reduction="none")
        weights = torch.where(answers.turn == 2, self.rating_weight, 1.0)
        return (losses * weights).sum(), weights.sum()


def _ready(part: Part, config: FinetuneConfig, tuned: bool) -> nn.Module:
    """The part, with LoRA layers in place (those it begins with, or new ones), or all of it trainable."""
    module = part.module
    with without_peft_notice():
        if part.init_from is not None:
            module = PeftModel.from_pretrained(module, part.init_from, is_trainable=tuned)
        elif tuned and part.lora is not None:
            alpha = 2 * config.rank if config.alpha is None else config.alpha
            lora = LoraConfig(
                r=config.rank, lora_alpha=alpha, lora_dropout=config.dropout, target_modules=part.lora
            )
            module = get_peft_model(module, lora)
    if not tuned:
        return module.eval()
    if part.lora is None:
        module.requires_grad_()
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()  # a few images are too few for statistics
    return module


class _Trainer:
    """One optimiser run over a backbone, step by step."""

    def __init__(
        self, accelerator: Accelerator, backbone: TrainableBackbone, steps: int, config: FinetuneConfig
    ) -> None:
        unknown = [name for name in config.tune if name not in backbone.parts]
        if unknown or not config.tune:
            raise InputError(
                f"{backbone.name} has no part {', '.join(unknown) or '(none was named)'} to tune. "
                f"Its parts are {', '.join(backbone.parts)}."
            )
        self.accelerator, self.config, self.parts = accelerator, config, backbone.parts
        self.steps = steps
        learner = _Learner(backbone, config)
        self.modules = dict(learner.parts.items())
        self.tuned = {name: self.modules[name] for name in self.parts if name in config.tune}
        adapters = [module for module in self.tuned.values() if isinstance(module, PeftModel)]
        whole = [module for module in self.tuned.values() if not isinstance(module, PeftModel)]
        groups = [
            {"params": _learning(adapters), "peak": config.adapter_lr},
            {"params": _learning(whole), "peak": config.full_lr},
        ]
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
        )
        self.learner, self.optimizer = accelerator.prepare(learner, optimizer)

    # --- learning ----------------------------------------------------------------------------

    def step(self, number: int, group: range, batches: list[list[Lesson]]) -> float:
        """One step of the optimiser on some of the batches; returns their mean loss."""
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = parameters["peak"] * rate(number, self.steps, self.config)
        self.accelerator.step, self.accelerator.gradient_accumulation_steps = 0, len(group)
        losses = [self._learn(batches[index], index) for index in group]
        return sum(losses) / len(losses)

    def _learn(self, batch: list[Lesson], index: int) -> float:
        """Gradients of a batch's loss, the mean over the answers' tokens of all processes."""
        number, count = self.accelerator.process_index, self.accelerator.num_processes
        rng = Random(f"{self.config.seed} {index}")
        torch.manual_seed(rng.getrandbits(32) + number)  # of dropout, so that resuming changes nothing
        # All are opened everywhere, so that their random changes do not depend on how many processes share.
        requests = [lesson.request(rng) for lesson in batch]
        share = requests[number::count]
        with self.accelerator.accumulate(self.learner):
            # A process without a share still has to take part.
            total, weight = self.learner(share or requests[:1])
            if not share:
                total, weight = 0 * total, 0 * weight
            whole = self.accelerator.reduce(weight)
            self.accelerator.backward(total / whole * count)  # gradients are averaged over processes
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return (self.accelerator.reduce(total.detach()) / whole).item()

    # --- resuming ----------------------------------------------------------------------------

    def save(self, state: Path, done: int) -> None:
        """Put everything that is needed to go on into the folder; a kill leaves the old or the new one."""
        if self._sharded:
            self.accelerator.save_state(_shards(state, done), exclude_frozen_parameters=True)
        weights = {} if self._sharded else self._weights()
        if not self.accelerator.is_main_process:
            return

        def write(folder: Path) -> None:
            if not self._sharded:
                for name, module in self.tuned.items():
                    save_file(_learned(module, weights[name]), folder / f"{name}.safetensors")
                torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
                if self.accelerator.scaler:
                    torch.save(self.accelerator.scaler.state_dict(), folder / "scaler.pt")
            (folder / "step.json").write_text(json.dumps(done))

        replace_folder(state, write)
        for shards in state.parent.glob(f"{state.name}-*"):
            if shards != _shards(state, done):
                shutil.rmtree(shards)

    def restore(self, state: Path) -> int:
        """Continue from the newest whole state; returns the number of steps already done."""
        folder = latest_folder(state)
        self.accelerator.wait_for_everyone()
        if folder is None:
            return 0
        done = json.loads((folder / "step.json").read_text())
        if self._sharded:
            self.accelerator.load_state(_shards(state, done), load_module_strict=False)
            return done
        for name, module in self.tuned.items():
            weights = load_file(folder / f"{name}.safetensors")
            if isinstance(module, PeftModel):
                set_peft_model_state_dict(module, weights)
            else:
                module.load_state_dict(weights)
        self.optimizer.load_state_dict(_load(folder / "optimizer.pt"))
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(_load(folder / "scaler.pt"))
        return done

    def export(self, out: Path) -> None:
        """What was learned, and what has no published weights, as checkpoints hold it: in 16 bit.

        Buffers stay as they are: nano's hold what was fitted in closed form, where rounding adds up.
        """
        weights = self._weights()
        if not self.accelerator.is_main_process:
            return
        for name, part in self.parts.items():
            exact = {key for key, _ in self.modules[name].named_buffers()}
            half = {
                key: (value if key in exact else value.bfloat16()).contiguous()
                for key, value in weights[name].items()
            }
            if isinstance(self.modules[name], PeftModel):
                _export_adapter(self.modules[name], half, out / part.file, part.base)
            elif name in self.tuned or part.base is None:
                save_file(half, out / part.file)

    @property
    def _sharded(self) -> bool:
        """Whether DeepSpeed holds weights and optimiser, each process a part."""
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        """Tensors of all parts, by part and name; under DeepSpeed in the main process only."""
        state = self.accelerator.get_state_dict(self.learner) or {}
        weights: dict[str, dict[str, Tensor]] = {}
        for name in self.parts:
            prefix = f"parts.{name}."
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            module = self.modules[name]
            if isinstance(module, PeftModel):
                own = {key: value for key, value in own.items() if module.base_model.prefix in key}
            weights[name] = own
        return weights


def _learning(modules: list[nn.Module]) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def _learned(module: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(module, PeftModel):
        weights = get_peft_model_state_dict(module, weights, save_embedding_layers=False)
    return {name: value.contiguous() for name, value in weights.items()}


def _export_adapter(adapter: PeftModel, weights: dict[str, Tensor], folder: Path, base: str | None) -> None:
    adapter.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
    (folder / "README.md").unlink()  # PEFT's empty model card
    settings = folder / "adapter_config.json"
    facts = {**json.loads(settings.read_text()), "base_model_name_or_path": base}
    write_json(settings, facts)  # PEFT names a folder of this machine


def _shards(state: Path, done: int) -> Path:
    """Where all processes write their parts of a state; its step.json says which step's are whole."""
    return state.with_name(f"{state.name}-{done}")


def _load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)
