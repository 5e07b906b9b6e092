"""What a BERT says of texts before anything is read from it: the mean of the last hidden states, and [CLS]'s.

Both are kept on disk, so that towers which read the same encoder in different ways embed a corpus once. Work is done
in blocks, each a file that is whole or not there: a run that is stopped goes on with the next block.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from realm_hf import RealmEmbedder
from realm_hf.models.pooling import mean_of_tokens
from realm_hf.models.ragged_encoding import CHUNK_TOKENS, plan_chunks
from realm_hf.storage.files import replacement

BLOCK = 1024
MEAN, CLS = 0, 1

Pad = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Numbers of texts to their padded inputs, `[n, L]` each."""


def pooled_states(encoder: RealmEmbedder, pad: Pad, lengths: np.ndarray, folder: Path) -> np.ndarray:
    """The states of all texts, from the files that are there and computed where there are none.

    Args:
        encoder: Whose `realm` is run, in evaluation mode.
        pad: Makes the inputs of some texts.
        lengths: Wordpieces of each text, `[N]`.
        folder: Where the blocks are kept.

    Returns:
        float32 `[N, 2, H]`: the mean and [CLS].
    """
    blocks = []
    for start in range(0, len(lengths), BLOCK):
        file = folder / f"{start:08d}.npz"
        if not file.exists():
            states = _block(encoder, pad, np.arange(start, min(start + BLOCK, len(lengths))), lengths)
            folder.mkdir(parents=True, exist_ok=True)
            with replacement(file) as temporary, temporary.open("wb") as opened:
                np.savez(opened, states=states)
            print(f"{folder.name}: {start + len(states):,} of {len(lengths):,} texts", file=sys.stderr, flush=True)
        with np.load(file, allow_pickle=False) as found:
            blocks.append(found["states"])
    return np.concatenate(blocks)


@torch.inference_mode()
def _block(encoder: RealmEmbedder, pad: Pad, numbers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    smallest, largest = CHUNK_TOKENS["cpu"]
    result = np.empty((len(numbers), 2, encoder.config.hidden_size), np.float32)
    for chunk in plan_chunks(lengths[numbers].tolist(), largest, smallest):
        inputs = {name: torch.from_numpy(array) for name, array in pad(numbers[chunk]).items()}
        states = encoder.realm(**inputs).last_hidden_state
        result[chunk, MEAN] = mean_of_tokens(states, inputs["attention_mask"]).numpy()
        result[chunk, CLS] = states[:, 0].numpy()
    return result
