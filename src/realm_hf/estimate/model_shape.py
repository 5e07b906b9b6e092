"""What of a model decides its cost."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MODELS", "ModelShape"]


@dataclass(frozen=True)
class ModelShape:
    """
    What of a BERT decides its cost.

    Args:
        hidden_size (`int`): H.
        num_hidden_layers (`int`): L.
        intermediate_size (`int`): Of the feed-forward layers.
        vocab_size (`int`, *optional*, defaults to 30522): V.
    """

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    vocab_size: int = 30_522

    @property
    def layer_parameters(self) -> int:
        """Of all layers, without embeddings."""
        return self.num_hidden_layers * (4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size)

    @property
    def parameters(self) -> int:
        """Of one tower with its word embeddings."""
        return self.layer_parameters + (self.vocab_size + 512) * self.hidden_size

    def forward_operations(self, length: float) -> float:
        """Floating-point operations of a forward pass over one sequence; attention grows with its square."""
        attention = 4 * self.num_hidden_layers * self.hidden_size * length**2
        return 2 * self.layer_parameters * length + attention

    def head_operations(self, positions: float) -> float:
        """Of the vocabulary's logits at masked positions."""
        return 2 * positions * self.hidden_size * (self.hidden_size + self.vocab_size)


MODELS = {
    "base": ModelShape(768, 12, 3072),
    "small": ModelShape(512, 4, 2048),
    "mini": ModelShape(256, 4, 1024),
    "tiny": ModelShape(128, 2, 512),
}
