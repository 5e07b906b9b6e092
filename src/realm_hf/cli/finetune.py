"""`realm-hf finetune`: query tower and reader learn from questions and answers, over your own knowledge corpus.

    accelerate launch -m realm_hf finetune --model_name_or_path RUN/model --output_dir runs/qa \
        --train_questions train.jsonl --dev_questions dev.jsonl --num_train_epochs 20 --eval_steps 500
    accelerate launch -m realm_hf finetune qa.yaml --max_steps 50
    accelerate launch -m realm_hf finetune qa.yaml --resume_from_checkpoint true

RUN is a run of `realm-hf pretrain`: its passages are the corpus and its newest index is taken over. From a BERT
checkpoint, or over another corpus, name a `--knowledge_corpus` or a passage store (`--passages`), and the index is
built once. The output directory then holds model/ (weights, passages and index: it answers by itself), best/,
checkpoints/, index/, log.jsonl and summary.json.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, PreTrainedTokenizerBase

from realm_hf.cli.arguments import EvaluationArguments, PassageArguments, QuestionArguments, StartArguments
from realm_hf.cli.corpora import (
    end_interrupted,
    load_model,
    load_tokenizer,
    prepare_passages,
)
from realm_hf.cli.eval_questions import load_eval_questions
from realm_hf.cli.programs import one_line_errors, set_up_logging
from realm_hf.data import OpenQAExample, PassageStore, load_questions
from realm_hf.models.modeling_embedder import RealmEmbedder
from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.training import OpenQATrainer, OpenQATrainingArguments, make_accelerator, permute

SHOWN = 5


def main(
    questions: QuestionArguments,
    knowledge: PassageArguments,
    start: StartArguments,
    evaluation: EvaluationArguments,
    args: OpenQATrainingArguments,
) -> int:
    """Run the command with these arguments; returns its exit code."""
    with one_line_errors("finetune"):
        accelerator = make_accelerator(args)
        set_up_logging(accelerator)
        tokenizer = load_tokenizer(start)
        train, dev = load_examples(questions, args.seed, gold=args.gold_passages)
        origin = run_of(start.model_name_or_path)
        passages = find_passages(knowledge, start, tokenizer, origin, Path(args.output_dir))
        model, passage_embedder = load_start(start, args.seed, passages)
        trainer = OpenQATrainer(
            model,
            args,
            train_dataset=train,
            eval_dataset=dev,
            processing_class=tokenizer,
            passages=passages,
            passage_embedder=passage_embedder,
            eval_retrieval=load_eval_questions(evaluation),
            index_from=start.index_from or origin,
            accelerator=accelerator,
        )
    if accelerator.is_main_process:
        print(overview(trainer), flush=True)
    result = trainer.train()
    if result.interrupted:
        return end_interrupted(result, accelerator)
    if accelerator.is_main_process:
        run = Path(args.output_dir)
        print(f"\nDone at step {result.step}: {run}")
        show_results(run, [example.question for example in (dev or train)[:SHOWN]], args)
    accelerator.end_training()
    return 0


def load_examples(
    args: QuestionArguments, seed: int, *, gold: bool
) -> tuple[list[OpenQAExample], list[OpenQAExample]]:
    """Training questions, with their gold passages if these are read, and development questions."""

    def load(source: str, split: str, gold_column: str | None = None) -> list[OpenQAExample]:
        return load_questions(
            source,
            split,
            name=args.questions_config,
            question_column=args.question_column,
            answer_column=args.answer_column,
            gold_column=gold_column,
            regex=args.regex_answers,
        )

    train = load(args.train_questions, args.train_split, args.gold_column if gold else None)
    if args.dev_questions is not None:
        return train, load(args.dev_questions, args.dev_split)
    held = int(args.dev_fraction * len(train))
    if not held:
        return train, []
    order = permute(np.arange(len(train)), len(train), seed, epoch=0).tolist()
    return [train[row] for row in sorted(order[held:])], [train[row] for row in sorted(order[:held])]


def run_of(model: str) -> Path | None:
    """The run of pre-training that was named, or that a model folder belongs to."""
    folder = Path(model).absolute()
    return next((place for place in (folder, folder.parent) if (place / "run.json").is_file()), None)


def find_passages(
    args: PassageArguments,
    start: StartArguments,
    tokenizer: PreTrainedTokenizerBase,
    origin: Path | None,
    run: Path,
) -> PassageStore:
    """The corpus that was named, or that of the model's run."""
    if args.passages is not None and args.knowledge_corpus is not None:
        raise SystemExit("Both passages and knowledge_corpus are given: name one corpus.")
    if args.knowledge_corpus is not None:
        return prepare_passages(args, tokenizer, run / "passages", args.max_candidate_length)
    if args.passages is not None:
        return PassageStore.load(args.passages)
    for folder in (Path(start.model_name_or_path) / "passages", *([] if origin is None else [origin / "passages"])):
        if folder.is_dir():
            return PassageStore.load(folder)
    raise SystemExit(
        f"There are no passages: {start.model_name_or_path} is not in a run of pre-training. Name a knowledge_corpus, "
        "or a passage store with passages."
    )


def load_start(args: StartArguments, seed: int, passages: PassageStore) -> tuple[RealmForOpenQA, RealmEmbedder | None]:
    """The model, and its passage tower where that is not its query tower."""
    overrides: dict[str, Any] = {} if args.max_span_width is None else {"max_span_width": args.max_span_width}
    config = AutoConfig.from_pretrained(args.model_name_or_path)
    if config.model_type == "realm" and "RealmForOpenQA" in (config.architectures or []):
        tower = Path(args.model_name_or_path) / "embedder"
        if not tower.is_dir():
            raise SystemExit(
                f"{args.model_name_or_path} has been fine-tuned, but the tower of its passages is not beside it "
                f"({tower}): start from the pre-trained model, or fine-tune with save_retriever."
            )
        model = RealmForOpenQA.from_pretrained(args.model_name_or_path, **overrides)
        return model, RealmEmbedder.from_pretrained(tower)
    pretrained = load_model(args, seed, passages)
    model = RealmForOpenQA.from_pretraining(pretrained, seed=seed, **overrides)
    return model, None if pretrained.config.share_embedders else pretrained.embedder


def overview(trainer: OpenQATrainer) -> str:
    """What is about to run."""
    args, search = trainer.args, trainer.search
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    tower = sum(p.numel() for p in trainer.model.embedder.parameters() if p.requires_grad)
    epochs = args.max_steps * trainer.examples_per_step / len(trainer.train_dataset)
    lines = [
        f"Model       {trained / 1e6:.1f}M trainable parameters, {tower / 1e6:.1f}M of them in the query tower",
        f"Questions   {len(trainer.train_dataset):,} to train on, {len(trainer.eval_dataset):,} to evaluate on",
        f"Passages    {len(trainer.passages):,}; a beam of {search.wide:,}, of which {search.read} are read",
        f"Training    {args.max_steps:,} steps of {trainer.examples_per_step} questions ({epochs:.1f} epochs), on "
        f"{trainer.world_size} x {trainer.device.type}",
        f"Index       {args.index_factory}, refresh {args.refresh}",
    ]
    return "\n".join(lines)


def show_results(run: Path, questions: list[str], args: OpenQATrainingArguments) -> None:
    """The figures of the model that was kept, and a few of its answers."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    counts, model = summary["trained_questions"], summary["model"]
    if counts["questions"]:
        share = counts["answerless"] / counts["questions"]
        print(f"No answer in the beam: {counts['answerless']:,} of {counts['questions']:,} questions ({share:.1%})")
    if "value" in model:
        print(f"Exact match {model['value']:.1%} at step {model['step']}, kept in {run / 'model'}")
    if not args.save_retriever:
        return
    folder = run / "model"
    answerer = QuestionAnswerer(RealmForOpenQA.from_pretrained(folder), RealmRetriever.from_pretrained(folder))
    for answer in answerer(questions):
        title = answer.title or ("(no title)" if answer.shown else "")
        print(f"  {answer.question}\n    {answer.shown or '(none)'}  p {answer.probability:.2f}  {title}")
