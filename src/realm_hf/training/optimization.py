"""Device, optimizer and schedule of a training loop."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
from torch import nn
from transformers import PreTrainedModel

from realm_hf.models.precision import native_bfloat16
from realm_hf.refresh.builder_device import check_on_all_ranks
from realm_hf.training.arguments import LoopArguments, RefreshArguments
from realm_hf.training.launch_environment import (
    check_accelerator,
    check_launch,
    launcher_precision,
    meet_restarted_ranks,
)
from realm_hf.training.tracking import installed_trackers


def make_accelerator(args: LoopArguments) -> Accelerator:
    """The Accelerator of a run, from `use_cpu` and `report_to`.

    Raises:
        ValueError: The launcher asks for what this loop does not do (see [`check_launch`]), a tracker is not
            installed, or the builder's device cannot be used.
    """
    check_launch(args)
    meet_restarted_ranks(args.use_cpu)
    folders = ProjectConfiguration(project_dir=args.output_dir, logging_dir=f"{args.output_dir}/tracking")
    accelerator = Accelerator(
        cpu=args.use_cpu,
        # The loop accumulates and casts by itself. Both are said, and the first as a plugin, because only that goes
        # before the launcher's variable.
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=installed_trackers(args.report_to) or None,
        project_config=folders,
        # BERT's buffers are constants (position ids): nothing to send round before every forward.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    check_accelerator(accelerator, args)
    if isinstance(args, RefreshArguments) and args.refresh == "async":
        # Here, before corpora are prepared and towers warmed up: the builder itself is first needed hours later.
        check_on_all_ranks(args.builder_device)
    return accelerator


def uses_bfloat16(args: LoopArguments, accelerator: Accelerator) -> bool:
    """Whether the run computes in bfloat16: as the arguments say, else as the launcher or whoever made the Accelerator
    does, else where the device is faster by it.
    """
    if args.bf16 is not None:
        return args.bf16
    return "bf16" in (launcher_precision(), accelerator.mixed_precision) or native_bfloat16(accelerator.device)


def enable_activation_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass; under the name that this transformers has for it."""
    settings = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(settings)
    else:
        model.gradient_checkpointing_enable(settings)


def learning_rate(args: LoopArguments, step: int) -> float:
    """The rate of optimizer step `step` (from 1): linear warm-up, then linear decay that ends at 0 after max_steps."""
    if step <= args.warmup_steps:
        return args.learning_rate * step / args.warmup_steps
    remaining = args.max_steps - step + 1
    return args.learning_rate * max(0.0, remaining / max(1, args.max_steps - args.warmup_steps))


def adamw(
    module: nn.Module, args: LoopArguments, own_rates: Mapping[nn.Module, float] | None = None
) -> torch.optim.AdamW:
    """AdamW without decay on biases and normalisation weights: those with one dimension.

    Args:
        module: What is trained.
        args: Its `learning_rate` is the peak rate of whatever has none of its own.
        own_rates: Peak rates of submodules. A group's `scale` is its peak over `args.learning_rate`: one schedule
            serves all.
    """
    scales = {id(p): rate / args.learning_rate for part, rate in (own_rates or {}).items() for p in part.parameters()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups.setdefault((scales.get(id(parameter), 1.0), parameter.ndim > 1), []).append(parameter)
    described = [
        {"params": parameters, "weight_decay": args.weight_decay if decays else 0.0, "scale": scale}
        # Weights before biases, whatever the module begins with: checkpoints number the groups.
        for (scale, decays), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]
    return torch.optim.AdamW(
        described, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon, fused=True
    )
