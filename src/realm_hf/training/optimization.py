"""Device, optimizer and schedule of a training loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
from torch import nn
from transformers import PreTrainedModel
from transformers.optimization import Adafactor, get_scheduler

from realm_hf.models.precision import native_bfloat16
from realm_hf.refresh.builder_device import check_on_all_ranks
from realm_hf.storage.errors import make_output_directory
from realm_hf.training.arguments import RefreshArguments
from realm_hf.training.elastic_restart import meet_restarted_ranks
from realm_hf.training.launch_environment import check_accelerator, check_launch, launcher_precision
from realm_hf.training.loop_arguments import LoopArguments
from realm_hf.training.sharding_launch import without_fsdp
from realm_hf.training.tracking import installed_trackers


def make_accelerator(args: LoopArguments) -> Accelerator:
    """The Accelerator of a run, from `use_cpu` and `report_to`.

    Raises:
        OSError: Nothing can be written to `output_dir`.
        ValueError: The launcher asks for what this loop does not do (see [`check_launch`]), a tracker is not
            installed, or the builder's device cannot be used.
    """
    check_launch(args)
    # Here as well, before hours of preparation.
    make_output_directory(Path(args.output_dir))
    meet_restarted_ranks(args.use_cpu)
    folders = ProjectConfiguration(project_dir=args.output_dir, logging_dir=f"{args.output_dir}/tracking")
    with without_fsdp():
        accelerator = Accelerator(
            cpu=args.use_cpu,
            # The loop accumulates, casts and shards by itself. The first two are given, and the first as a plugin,
            # because only that goes before the launcher's variable.
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
    """The learning rate of optimizer step `step`, which is counted from 1.

    The warm-up reaches the peak at step `num_warmup_steps`; its first step already has a rate above 0, where
    transformers' has 0 and trains nothing. What follows is transformers' schedule, whose peak is the step after that.
    """
    warmup = args.num_warmup_steps
    # In transformers' schedule `warmup` is the peak: our last step of the warm-up has it, and the one after it.
    position = step if step <= warmup else step - 1
    if args.lr_scheduler_type == "linear" and step <= warmup:
        # As `schedule` has it but for the last bit: runs that were begun before there was a choice go on as they were.
        return args.learning_rate * position / warmup
    return args.learning_rate * schedule(args)(position)


def schedule(args: LoopArguments) -> Callable[[int], float]:
    """Transformers' schedule `lr_scheduler_type`: position from 0 -> share of the peak rate.

    Raises:
        ValueError: `lr_scheduler_kwargs` do not fit it.
    """
    more = json.dumps(args.lr_scheduler_kwargs or {}, sort_keys=True)
    return _schedule(args.lr_scheduler_type, args.learning_rate, args.num_warmup_steps, args.max_steps, more)


@lru_cache
def _schedule(name: str, peak: float, warmup_steps: int, max_steps: int, more: str) -> Callable[[int], float]:
    # Only the function is wanted: the rate follows from the step, so that a checkpoint needs no state of a scheduler.
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    try:
        made = get_scheduler(name, optimizer, warmup_steps, max_steps, json.loads(more))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"lr_scheduler_kwargs={more} do not fit lr_scheduler_type={name!r}: {error}. See its function in "
            "transformers.optimization for the ones it has."
        ) from error
    return made.lr_lambdas[0]


def make_optimizer(
    module: nn.Module, args: LoopArguments, own_rates: Mapping[nn.Module, float] | None = None
) -> torch.optim.Optimizer:
    """The optimizer `args.optim`, without decay on biases and normalisation weights: those with one dimension.

    Args:
        module (`nn.Module`): What is trained.
        args ([`LoopArguments`]): Its `learning_rate` is the peak rate of whatever has none of its own.
        own_rates (`dict[nn.Module, float]`, *optional*): Peak rates of submodules. A group's `scale` is its peak over
            `args.learning_rate`: one schedule serves all.

    Raises:
        ValueError: `lr_scheduler_kwargs` do not fit the schedule.
    """
    schedule(args)  # an error here comes before the first index is built, not after
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
    if args.optim == "adafactor":
        # Its own schedule and scaling are off, as in `transformers.Trainer`: the rate is ours.
        return Adafactor(described, lr=args.learning_rate, scale_parameter=False, relative_step=False)
    betas, fused = (args.adam_beta1, args.adam_beta2), args.optim == "adamw_torch_fused"
    return torch.optim.AdamW(described, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, fused=fused)
