"""What of an encoder decides what it costs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MODELS", "ModelShape"]


@dataclass(frozen=True)
class ModelShape:
    """
    What of an encoder decides its cost: a BERT's sizes, or what was counted, see [`~encoder_shapes.shape_of_encoder`].

    Args:
        hidden_size (`int`): H.
        num_hidden_layers (`int`): L.
        intermediate_size (`int`): Of the feed-forward layers.
        vocab_size (`int`, *optional*, defaults to 30522): V.
        layer_weights (`int`, *optional*): Of the matrices that every token goes through; a BERT's if not given.
        other_weights (`int`, *optional*): All others of the encoder; a BERT's embeddings if not given.
        head_weights (`int`, *optional*): Of the prediction head's matrices; a BERT's if not given.
    """

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    vocab_size: int = 30_522
    layer_weights: int | None = None
    other_weights: int | None = None
    head_weights: int | None = None

    @property
    def layer_parameters(self) -> int:
        """Of all layers, without embeddings."""
        if self.layer_weights is not None:
            return self.layer_weights
        return self.num_hidden_layers * (4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size)

    @property
    def parameters(self) -> int:
        """Of one tower with its word embeddings."""
        others = (self.vocab_size + 512) * self.hidden_size if self.other_weights is None else self.other_weights
        return self.layer_parameters + others

    def forward_operations(self, length: float) -> float:
        """Floating-point operations of a forward pass over one sequence; attention grows with its square."""
        attention = 4 * self.num_hidden_layers * self.hidden_size * length**2
        return 2 * self.layer_parameters * length + attention

    def head_operations(self, positions: float) -> float:
        """Of the vocabulary's logits at masked positions."""
        bert = self.hidden_size * (self.hidden_size + self.vocab_size)
        return 2 * positions * (bert if self.head_weights is None else self.head_weights)


MODELS = {
    "base": ModelShape(768, 12, 3072),
    "small": ModelShape(512, 4, 2048),
    "mini": ModelShape(256, 4, 1024),
    "tiny": ModelShape(128, 2, 512),
}
