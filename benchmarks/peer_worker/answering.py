"""Answering with the old port: a batch of one is all that it takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from old_qa import load_model, load_questions


def prepare(folder: Path, options: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Answer all questions, one after the other."""
    model, tokenizer = load_model(folder, options)
    model.eval()
    questions = load_questions(folder)

    def work() -> dict[str, Any]:
        answers = []
        with torch.inference_mode():
            for question in questions:
                inputs = tokenizer([question["question"]], return_tensors="pt")
                answers.append(tokenizer.decode(model(**inputs).predicted_answer_ids))
        return {"answers": answers}

    return work
