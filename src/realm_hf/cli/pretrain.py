"""`realm-hf pretrain`: from your own raw text and knowledge corpus to a model, an index and a report.

    accelerate launch -m realm_hf pretrain --knowledge_corpus wiki.parquet --output_dir runs/mine \
        --model_name_or_path google-bert/bert-base-uncased --inverse_cloze_steps 1000 --max_steps 2000
    accelerate launch -m realm_hf pretrain run.yaml --max_steps 50
    accelerate launch -m realm_hf pretrain run.yaml --resume_from_checkpoint true

RUN (`--output_dir`) then holds passages/ and sentences/ (built once, and found again), checkpoints/, index/, model/,
log.jsonl, summary.json, examples.json, report.html, and a folder for each warm start (`pretrain_warm_starts.py`).
"""

import json
from pathlib import Path

from accelerate import Accelerator

from realm_hf.cli.arguments import (
    EvaluationArguments,
    KnowledgeArguments,
    ModelArguments,
    PreTrainingArguments,
    SentenceArguments,
    WarmStartArguments,
)
from realm_hf.cli.corpora import (
    end_interrupted,
    load_model,
    load_tokenizer,
    prepare_masks,
    prepare_passages,
    prepare_sentences,
)
from realm_hf.cli.eval_questions import load_eval_questions
from realm_hf.cli.pretrain_warm_starts import check_launch_of_warm_starts, warm_up
from realm_hf.cli.programs import one_line_errors, set_up_logging
from realm_hf.data import PassageStore, SentenceStore
from realm_hf.data.taggers.names import check_tagger_name
from realm_hf.models.modeling_realm import RealmForPreTraining
from realm_hf.report import write_report
from realm_hf.training import (
    RealmTrainer,
    RealmTrainingArguments,
    list_checkpoints,
    make_accelerator,
)


def main(
    knowledge: KnowledgeArguments,
    corpus: SentenceArguments,
    evaluation: EvaluationArguments,
    model_args: ModelArguments,
    warm: WarmStartArguments,
    args: PreTrainingArguments,
) -> int:
    """Run the command with these arguments; returns its exit code."""
    with one_line_errors("pretrain"):
        run = Path(args.output_dir)
        begins = not list_checkpoints(run / "checkpoints")
        if begins:
            check_launch_of_warm_starts(warm, args)
        accelerator = make_accelerator(args)
        set_up_logging(accelerator)
        check_tagger_name(corpus.tagger)
        tokenizer = load_tokenizer(model_args)
        passages = prepare_passages(knowledge, tokenizer, run / "passages", args.max_candidate_length)
        sentences = prepare_sentences(knowledge, corpus, args, tokenizer, run / "sentences")
        masks = prepare_masks(sentences, passages, tokenizer, run) if args.masking == "recurring" else None
        model = load_model(model_args, args.seed, passages if begins else None)
        if accelerator.is_main_process:
            print(overview(model, passages, sentences, args, accelerator), flush=True)

    stopped = warm_up(model, passages, tokenizer, warm, args, accelerator) if begins else None
    if stopped is not None:
        return end_interrupted(stopped, accelerator)
    with one_line_errors("pretrain"):
        trainer = RealmTrainer(
            model,
            args,
            train_dataset=sentences.train,
            eval_dataset=sentences.heldout,
            processing_class=tokenizer,
            passages=passages,
            eval_retrieval=load_eval_questions(evaluation),
            recurring_masks=masks,
            index_from=args.index_from,
            accelerator=accelerator,
        )
    result = trainer.train()
    if result.interrupted:
        return end_interrupted(result, accelerator)
    if accelerator.is_main_process:
        print(f"\nDone at step {result.step}: {run}")
        show_examples(run)
        print(f"Report: {write_report(run)}")
    accelerator.end_training()
    return 0


def overview(
    model: RealmForPreTraining,
    passages: PassageStore,
    sentences: SentenceStore,
    args: RealmTrainingArguments,
    accelerator: Accelerator,
) -> str:
    """What is about to run."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    retriever = sum(p.numel() for p in model.embedder.parameters() if p.requires_grad)
    counts = {"Passages": passages.statistics, "Sentences": sentences.statistics}
    lines = [
        f"Model       {trained / 1e6:.1f}M trainable parameters, {retriever / 1e6:.1f}M of them in the retriever",
        *(
            f"{n:11} " + ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in c.items() if v)
            for n, c in counts.items()
        ),
        f"Training    {args.max_steps:,} steps of {batch} examples with {args.num_candidates} candidates, on "
        f"{accelerator.num_processes} x {accelerator.device.type}",
        f"Rate        peak {args.learning_rate:g} after {args.num_warmup_steps:,} steps of warm-up, then "
        f"{args.lr_scheduler_type}",
        f"Index       {args.index_factory}, refresh {args.refresh}, {args.snapshot_schedule}",
    ]
    return "\n".join(lines)


def show_examples(run: Path, count: int = 3) -> None:
    """A few held-out sentences, what was retrieved for them and what the model fills in."""
    for example in json.loads((run / "examples.json").read_text(encoding="utf-8"))[:count]:
        print(f"\n{example['text']}\n  answer: {example['answer']}   filled in: {example['filling']}")
        for candidate in sorted(example["candidates"], key=lambda c: -c["probability"])[:3]:
            p, utility = f"p {candidate['probability']:.3f}", f"utility {candidate['utility']:+.2f}"
            title = candidate["title"] or ("(no title)" if candidate["text"] else "(null passage)")
            print(f"  {p}  {utility}  {title}: {candidate['text'][:70]}")
