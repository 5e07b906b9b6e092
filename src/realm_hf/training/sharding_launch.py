"""What a launcher says of FSDP2, in the variables that `accelerate launch` sets: honoured, or refused in words.

Accelerate's own FSDP is not used. Over gloo it passes the wish over and trains unsharded; on GPUs it would gather the
weights inside `prepare`, where nothing of a tower that is called in chunks is known. The loop makes a plain
Accelerator and shards the model itself ([`ModelWeights`]), in the same way on processors and on GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from realm_hf.training.loop_arguments import LoopArguments

_USE = "ACCELERATE_USE_FSDP"
# What would be passed over, or would change how weights are read: setting -> what to say instead.
_REFUSED_SWITCHES = {
    "fsdp_cpu_ram_efficient_loading": "every rank reads the models that it needs, snapshots among them: set it to "
    "false",
    "fsdp_offload_params": "weights stay on their device: set it to false",
    "fsdp_activation_checkpointing": "say --gradient_checkpointing true to the script instead",
}


@dataclass(frozen=True)
class Sharding:
    """How the weights of a model are spread over the ranks.

    Args:
        layers (`tuple[str, ...]`, *optional*): Class names of the modules whose weights are gathered by themselves; by
            default each layer that transformers can checkpoint.
        reshard_after_forward (`bool`, *optional*, defaults to `True`): Give the others' weights back after each
            forward pass of a layer, and gather them again in the backward pass.
    """

    layers: tuple[str, ...] = ()
    reshard_after_forward: bool = True


def asked_sharding(args: LoopArguments) -> Sharding | None:
    """The FSDP2 that the launcher asks for; `None` where it asks for none.

    Args:
        args ([`LoopArguments`]): Of the training.

    Raises:
        ValueError: This training keeps whole weights on each device, or the launcher asks for FSDP1 or for a setting
            of it that would be passed over.
    """
    if not launcher_says(_USE):
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(
            f"The launcher asks for FSDP with fsdp_version={version}, but this loop knows version 2 only: set "
            "fsdp_version: 2 in its configuration."
        )
    if not args.can_shard:
        raise ValueError(
            f"The launcher asks for FSDP, but a training with {type(args).__name__} keeps whole parameters on each "
            "device: only pre-training (RealmTrainer) shards them. Launch it with distributed_type MULTI_GPU, "
            "MULTI_CPU or NO."
        )
    if args.optim == "adafactor":
        raise ValueError(
            "The launcher asks for FSDP, but optim='adafactor' factors whole matrices, of which a rank holds a part. "
            "Use optim='adamw_torch_fused'."
        )
    for setting, remedy in _REFUSED_SWITCHES.items():
        if launcher_says(setting.upper()):
            raise ValueError(f"The launcher asks for {setting}=true, but {remedy}.")
    _require("fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "weights are gathered layer by layer")
    _require("fsdp_state_dict_type", "FULL_STATE_DICT", "checkpoints hold whole weights, whatever the number of ranks")
    if os.environ.get("FSDP_IGNORED_MODULES"):
        raise ValueError("The launcher asks for fsdp_ignored_modules, but all weights are sharded: leave it out.")
    return Sharding(_layers(), _reshards())


def launcher_says(variable: str) -> bool:
    """Whether a variable of the launcher's is set to yes."""
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes")


@contextmanager
def without_fsdp() -> Iterator[None]:
    """In the block the launcher asks for no FSDP: an Accelerator that is made here is a plain one."""
    asked = os.environ.pop(_USE, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[_USE] = asked


def _require(setting: str, only: str, because: str) -> None:
    value = os.environ.get(setting.upper(), "")
    if value not in ("", only):
        raise ValueError(f"The launcher asks for {setting}={value}, but {because}: set it to {only}.")


def _layers() -> tuple[str, ...]:
    names = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    return tuple(name.strip() for name in names.split(",") if name.strip())


def _reshards() -> bool:
    value = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    if value not in ("true", "false"):
        raise ValueError(f"fsdp_reshard_after_forward is {value!r}: FSDP2 takes true or false.")
    return value == "true"
