"""Spans of equal score, and which of them transformers 4.57.6 answers with.

    /tmp/oldport/bin/python tests/parity/make_ties.py tests/parity/fixtures/ties.json

Its reader gets whole numbers for logits in place of what its span head computes, so that many spans tie, and relevance
scores that keep the passages apart: where passages tie, that release mixes the place of one with the other passage.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

LENGTH, PASSAGES, WIDEST, CASES = 12, 3, 4, 40


def main() -> None:
    """Write, a case each: the body's mask, all candidates' logits, relevance scores, and what was chosen."""
    if transformers.__version__ != "4.57.6":
        sys.exit(f"transformers is {transformers.__version__}: run this with an interpreter that has 4.57.6.")
    generator = torch.Generator().manual_seed(0)
    config = transformers.RealmConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        span_hidden_size=8,
        max_span_width=WIDEST,
        reader_beam_size=PASSAGES,
    )
    reader = transformers.RealmReader(config).eval()
    head = reader.qa_outputs.dense_output
    ids = torch.randint(3, 20, (PASSAGES, LENGTH), generator=generator)
    cases = []
    for _ in range(CASES):
        candidates = sum(LENGTH - wider for wider in range(WIDEST))
        logits = torch.randint(-1, 2, (PASSAGES, candidates), generator=generator).float()
        head.forward = lambda hidden, logits=logits: logits.clone().unsqueeze(-1)
        mask = torch.rand((PASSAGES, LENGTH), generator=generator) < 0.8
        relevance = torch.tensor([0.25, 0.0, 0.5])[torch.randperm(PASSAGES, generator=generator)]
        with torch.no_grad():
            found = reader(
                input_ids=ids, token_type_ids=torch.zeros_like(ids), relevance_score=relevance, block_mask=mask
            )
        chosen = [int(found.block_idx), int(found.start_pos), int(found.end_pos)]
        values = {"mask": mask.int(), "logits": logits.int(), "relevance": relevance}
        cases.append({name: value.tolist() for name, value in values.items()} | {"chosen": chosen})
    # One case a line.
    Path(sys.argv[1]).write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
