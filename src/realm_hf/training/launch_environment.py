"""What a launcher asks of a run by environment variables, and what of it this loop honours.

`accelerate launch` hands its options on in variables that every `Accelerator` reads, also against the values that it
is given. Two of them would change a training without a word: a number of accumulation steps divides every gradient
once more, and fp16 brings a scaler that skips updates while the steps count on. So an option is honoured as the
argument of the same meaning is, or refused.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from accelerate.utils import DistributedType

from realm_hf.training.sharding_launch import asked_sharding, launcher_says

if TYPE_CHECKING:
    from accelerate import Accelerator

    from realm_hf.training.loop_arguments import LoopArguments

_SHARDING = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
_PRECISIONS = ("no", "bf16")


def check_launch(args: LoopArguments) -> None:
    """Refuse what the launcher asks for and this loop does not do, before anything is set up.

    Raises:
        ValueError: The launcher asks for sharded parameters in a way that this training does not do, for fp16 or fp8,
            for bf16 where the arguments forbid it, or for another number of accumulation steps than the arguments.
    """
    for variable, what in _SHARDING.items():
        # Asked of the environment: over gloo the Accelerator passes the wish over, and trains unsharded.
        if launcher_says(variable):
            raise ValueError(_unsharded(what))
    asked_sharding(args)
    _check_precision(launcher_precision(), "The launcher", args.bf16)
    asked = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "")
    if asked not in ("", "1", str(args.gradient_accumulation_steps)):
        raise ValueError(
            f"The launcher asks for gradient_accumulation_steps={asked}, but the run's own is "
            f"{args.gradient_accumulation_steps}. Say it once, to the script: --gradient_accumulation_steps {asked}."
        )


def check_accelerator(accelerator: Accelerator, args: LoopArguments) -> None:
    """Refuse an Accelerator, made here or by the caller, that would train otherwise than the arguments say.

    Raises:
        ValueError: It shards parameters, divides gradients by accumulation steps of its own, or computes in fp16, fp8,
            or in bf16 where the arguments forbid it.
    """
    if accelerator.distributed_type in (
        DistributedType.FSDP,
        DistributedType.DEEPSPEED,
        DistributedType.MEGATRON_LM,
    ):
        raise ValueError(_unsharded(accelerator.distributed_type.value))
    _check_precision(accelerator.mixed_precision, "The Accelerator", args.bf16)
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"The Accelerator has gradient_accumulation_steps={accelerator.gradient_accumulation_steps}: it would "
            "divide every gradient by it, which the loss is already. Make it with 1, and give the number as the "
            "run's own argument gradient_accumulation_steps."
        )


def launcher_precision() -> str:
    """`--mixed_precision` of `accelerate launch`, which is "no" where it was not given."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no") or "no"


def _check_precision(precision: str, whose: str, bf16: bool | None) -> None:
    if precision not in _PRECISIONS:
        raise ValueError(
            f"{whose} asks for mixed_precision={precision}, which this loop does not train in: its scaler would skip "
            "updates while the steps count on. Drop it; --bf16 true is the run's own, on by default where the device "
            "computes it natively."
        )
    if precision == "bf16" and bf16 is False:
        raise ValueError(f"{whose} asks for mixed_precision=bf16, the arguments for bf16=False. Drop one of them.")


def _unsharded(what: str) -> str:
    return (
        f"The launcher asks for {what}, but this loop keeps whole parameters on each device, or shards them itself "
        "where `accelerate launch` asks for FSDP2: launch with distributed_type MULTI_GPU, MULTI_CPU or NO, and "
        "without its options."
    )
