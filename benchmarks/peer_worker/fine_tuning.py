"""Fine-tuning steps with the old port: forward and backward, question by question, gradients adding up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from old_qa import load_model, load_questions


def prepare(folder: Path, options: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """One step of all questions."""
    model, tokenizer = load_model(folder, options)
    model.train()
    examples = load_questions(folder)
    questions = [tokenizer([example["question"]], return_tensors="pt") for example in examples]
    answers = [tokenizer(example["answers"], add_special_tokens=False).input_ids for example in examples]

    def work() -> dict[str, Any]:
        model.zero_grad(set_to_none=True)
        losses = []
        for inputs, answer_ids in zip(questions, answers, strict=True):
            loss = model(**inputs, answer_ids=answer_ids).reader_output.loss
            loss.backward()
            losses.append(loss.item())
        return {"losses": losses}

    return work
