"""Where the weights of a trained model are: whole on each rank (DDP), or a part of them on each (FSDP2).

FSDP2 gathers the weights of a layer at each of its forward passes, and again in the backward pass, by collective
calls. So under it

- a step calls each layer equally often on all ranks: chunks of unequal number are made equal ([`equal_chunks`]);
- whatever else reads weights (an evaluation, the queries of a search, a checkpoint) reads a whole copy, which all
  ranks gather together and each then uses by itself, in any thread and as often as it likes.

`torch.distributed.fsdp` is imported here only. Rejected: one unit a tower, which would need no equal chunks, but holds
a whole tower and its gradients on each rank in every step; `summon`-like hooks that unshard in place, which a
forward pass on one rank alone would turn into a hang.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from realm_hf.models.ragged_encoding import equal_chunks
from realm_hf.refresh.process_groups import explain_broken_connection

if TYPE_CHECKING:
    from accelerate import Accelerator

    from realm_hf.training.ranks import Ranks
    from realm_hf.training.sharding_launch import Sharding

M = TypeVar("M", bound=nn.Module)


class ModelWeights:
    """The weights of one model. Every rank holds one and makes the same calls.

    Args:
        model ([`~transformers.PreTrainedModel`]): What is trained and saved, on its device.
        accelerator (`accelerate.Accelerator`): A plain one.
        ranks ([`Ranks`]): Those of the training.
        sharding ([`Sharding`], *optional*): How the weights are spread; by default each rank holds all. One process
            always does.

    Raises:
        ValueError: The model has no layer of the class that `sharding` names.
    """

    def __init__(
        self, model: PreTrainedModel, accelerator: Accelerator, ranks: Ranks, sharding: Sharding | None = None
    ):
        self.model, self._accelerator, self._ranks = model, accelerator, ranks
        self._sharding = None if accelerator.num_processes == 1 else sharding
        #: The model as it was before it was sharded, without its weights.
        self.outline = (
            model
            if self._sharding is None
            else _rebuilt(model, (torch.empty_like(p.data, device="meta") for p in model.parameters()))
        )
        self._names = {id(part): name for name, part in model.named_modules()}

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a part of the weights."""
        return self._sharding is not None

    def prepare(self, module: nn.Module) -> nn.Module:
        """What a step calls instead of `module`: DDP's wrapper, or `module` itself, sharded in place."""
        if self._sharding is None:
            prepared: nn.Module = self._accelerator.prepare_model(module)
            return prepared
        if module is not self.model:
            raise ValueError(f"Only a whole model can be sharded, got the {type(module).__name__} of one.")
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # As DDP does: all begin with the weights of rank 0.
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, 0)
        device = self._accelerator.device.type
        mesh = init_device_mesh(device, (self._accelerator.num_processes,))
        for layer in _layers(module, self._sharding.layers):
            fully_shard(layer, mesh=mesh, reshard_after_forward=self._sharding.reshard_after_forward)
        return cast(nn.Module, fully_shard(module, mesh=mesh))

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Surrounds the forward and backward pass of a micro-batch.

        Args:
            module (`nn.Module`): What `prepare` returned.
            last (`bool`): Whether it is the last one of its step. DDP sums the gradients over the ranks there; FSDP2
                does it in every micro-batch, and never holds whole gradients.
        """
        if self.is_sharded:
            return equal_chunks(self._ranks.largest)
        return nullcontext() if last else self._accelerator.no_sync(module)

    def whole(self, part: M) -> M:
        """`part` with whole weights as they are now, for reading: itself, or a copy of it on the same device.

        Args:
            part (`nn.Module`): The model or a module of it.
        """
        return part if self._sharding is None else self._copied(part, lambda tensor: tensor)

    def on_main(self) -> PreTrainedModel:
        """The whole model for rank 0 to write: itself, or a copy in the memory of its host. The other ranks get no
        weights.
        """
        if self._sharding is None:
            return self.model
        keep = self._accelerator.is_main_process
        return self._copied(self.model, lambda tensor: tensor.cpu() if keep else tensor.to("meta"))

    def fill(self, load: Callable[[PreTrainedModel], None]) -> None:
        """Take over the weights that `load` puts into a model.

        Args:
            load (`Callable`): Called with the model itself, or with a copy in the memory of the host; on every rank.
        """
        if self._sharding is None:
            load(self.model)
            return
        blank = _rebuilt(self.outline, (torch.empty_like(p.data, device="cpu") for p in self.outline.parameters()))
        load(blank)
        with torch.no_grad():
            for own, given in zip(self.model.parameters(), blank.parameters(), strict=True):
                own.copy_(as_sharded(given.data, own))

    def _copied(self, part: M, keep: Callable[[torch.Tensor], torch.Tensor]) -> M:
        outline = cast(M, self.outline.get_submodule(self._names[id(part)]))
        with torch.no_grad(), explain_broken_connection("gather the weights"):
            # One by one: never more than one is whole where it is not kept.
            copied = _rebuilt(outline, (keep(whole_tensor(p.detach())) for p in part.parameters()))
        for mine, theirs in zip(copied.modules(), part.modules(), strict=True):
            mine.training = theirs.training
        return copied


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, gathered from all ranks if each holds a part of it; then a collective call."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_sharded(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole `tensor`, if `like` is sharded and has its shape. Nothing is sent."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor.to(like.device)
    mesh, placements = like.device_mesh, like.placements
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)


def _layers(module: nn.Module, names: tuple[str, ...]) -> Iterable[nn.Module]:
    """The modules that are gathered by themselves, none within another."""
    layers: list[nn.Module] = []
    seen: set[int] = set()
    for part in module.modules():
        wanted = type(part).__name__ in names if names else isinstance(part, GradientCheckpointingLayer)
        if wanted and id(part) not in seen:
            layers.append(part)
            seen.update(id(inner) for inner in part.modules())
    if not layers:
        found = sorted({type(part).__name__ for part in module.modules()})
        raise ValueError(
            f"The model has no layer of class {' or '.join(names) or 'GradientCheckpointingLayer'} to shard. Name one "
            f"in fsdp_transformer_layer_cls_to_wrap; it has {', '.join(found)}."
        )
    return layers


def _rebuilt(module: M, weights: Iterable[torch.Tensor]) -> M:
    """A copy of `module` with other weights: tied ones stay tied, buffers are copied, configurations are shared."""
    memo: dict[int, Any] = {id(config): config for m in module.modules() if (config := getattr(m, "config", None))}
    for parameter, tensor in zip(module.parameters(), weights, strict=True):
        memo[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
    return copy.deepcopy(module, memo)
