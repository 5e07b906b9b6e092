"""The arguments of masked language modelling as a warm start."""

from __future__ import annotations

from dataclasses import dataclass, field

from realm_hf.training.arguments import LoopArguments


@dataclass
class MaskedLMTrainingArguments(LoopArguments):
    """Parameters of masked language modelling on the passages: the encoder's own warm start."""

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate; 5e-4 for small encoders."})
    max_length: int = field(default=128, metadata={"help": "Wordpieces of a sequence, special tokens included."})
    mask_probability: float = field(
        default=0.2, metadata={"help": "Share of the wordpieces that are masked, as whole words (BERT: 0.15)."}
    )
    pair_probability: float = field(
        default=0.5,
        metadata={"help": "How often a second passage that shares a span is joined, the span masked in the first."},
    )
    pack: bool = field(
        default=True, metadata={"help": "Fill a sequence with the passages that follow in the article."}
    )
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Sequences a device evaluates at once."})
    eval_examples: int = field(default=512, metadata={"help": "Held-out sequences that are evaluated."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.mask_probability < 1.0:
            raise ValueError(f"mask_probability is {self.mask_probability}: it must lie between 0 and 1.")
        if not 0.0 <= self.pair_probability <= 1.0:
            raise ValueError(f"pair_probability is {self.pair_probability}: it must lie in [0, 1].")
        self._at_least(16, "max_length")
        self._at_least(1, "per_device_eval_batch_size")
        self._at_least(0, "eval_examples")
