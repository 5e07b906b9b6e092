"""Resuming with other arguments than the checkpoint was trained with.

What changes objective, data or schedule makes another training of what is left: it is refused unless
`allow_changed_arguments` is set. An argument counts as such unless it is named here, so that a new one does not pass
by oversight.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from realm_hf.runs.errors import RunDirectoryError
from realm_hf.training.loop_arguments import UNREPORTED, LoopArguments
from realm_hf.training.optimization import learning_rate

logger = logging.getLogger(__name__)

FREE = frozenset(
    {
        # Where and how it is computed
        *("bf16", "gradient_checkpointing", "use_cpu"),
        # The batch and the length are compared by what they come to: see `_facts`
        *("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs"),
        # What is kept, logged and evaluated
        *("save_steps", "save_total_limit", "logging_steps", "eval_steps", "max_skipped_steps", "save_retriever"),
        *("per_device_eval_batch_size", "max_eval_sentences", "max_eval_questions", "early_stopping_patience"),
        # How the index is renewed
        *(
            "refresh",
            "refresh_steps",
            "refresh_schedule",
            "max_staleness",
            "on_stale",
            "builder_threads",
            "builder_device",
        ),
        *("keep_generations", "probe_queries", "retrieval_depth", "index_threads"),
        # The run directory itself refuses another one than it was made with
        *("encode_dtype", "embedding_dtype", "index_train_size", "max_tokens_per_batch"),
    }
)

_RENAMED = {"max_question_length": "max_query_length"}
"""Arguments that checkpoints of earlier versions record by another name."""


def recorded(args: LoopArguments, trained_on: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint records, so that [`check_resumed`] can compare: JSON."""
    return {"arguments": asdict(args), "trained_on": dict(trained_on)}


def check_resumed(
    path: Path, state: Mapping[str, Any], args: LoopArguments, trained_on: Mapping[str, Any], world_size: int
) -> None:
    """Say what differs from the training that wrote a checkpoint, and refuse what makes another one of it.

    Args:
        path (`pathlib.Path`): The checkpoint.
        state (`Mapping[str, Any]`): Its `state.json`.
        args ([`LoopArguments`]): The arguments now.
        trained_on (`Mapping[str, Any]`): Fingerprints of the data and what of the model's configuration the objective
            depends on.
        world_size (`int`): Processes now.

    Raises:
        RunDirectoryError: Objective, data or schedule differ and `allow_changed_arguments` is not set.
    """
    if "arguments" not in state:
        logger.warning(
            "%s is of an earlier version, which did not record the arguments: give the same ones as then.",
            path,
        )
    then = _facts(state.get("arguments", {"seed": state["seed"]}), state.get("trained_on", {}), state["world_size"])
    now = _facts(asdict(args), trained_on, world_size)
    # A name that one side does not have came or went with a version; its default is what was done without it.
    different = [name for name in now if name not in UNREPORTED and name in then and then[name] != now[name]]
    longer = then.get("max_steps", 0) < now["max_steps"]
    binding = [name for name in different if name not in FREE and not (name == "max_steps" and longer)]
    allowed = "; ".join(f"{name} {then[name]!r} then, {now[name]!r} now" for name in different if name not in binding)
    if allowed:
        logger.warning("resuming %s with other arguments: %s", path, allowed)
    if "max_steps" in different and longer:
        logger.warning(
            "max_steps %s then, %s now: the learning rate %s the new end, and is %.3g at step %d.",
            then["max_steps"],
            now["max_steps"],
            "falls to 0 at" if args.lr_scheduler_type == "linear" else f"follows {args.lr_scheduler_type} to",
            learning_rate(args, int(state["step"]) + 1),
            int(state["step"]) + 1,
        )
    if not binding:
        return
    changes = "; ".join(f"{name} {then[name]!r} then, {now[name]!r} now" for name in binding)
    if not args.allow_changed_arguments:
        raise RunDirectoryError(
            f"{path} was trained with other arguments, which change the objective, the data or the schedule of what "
            f"is left: {changes}. Give the old ones; or, if that is what you want, allow_changed_arguments=true."
        )
    logger.warning("resuming %s with another objective, other data or another schedule: %s", path, changes)


def _facts(arguments: Mapping[str, Any], trained_on: Mapping[str, Any], world_size: int) -> dict[str, Any]:
    """Arguments by name, what the model's configuration makes of those left open, and examples of a step."""
    facts = {**{_RENAMED.get(name, name): value for name, value in arguments.items()}, **trained_on}
    if "per_device_train_batch_size" in arguments:
        batch = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"]
        facts["examples_per_step"] = batch * world_size
    return facts
