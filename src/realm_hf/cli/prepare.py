"""`realm-hf prepare`: the corpora of `realm-hf pretrain`, ahead of it and by any number of processes.

    realm-hf prepare run.yaml --num_proc 16
    realm-hf prepare run.yaml --engine ray --workers 8

The arguments are those of `pretrain`, which finds RUN/passages and RUN/sentences then. Started several times, on any
nodes that see RUN and the documents, it shares the ranges of documents; what was killed is gone on with. No model is
loaded, only its tokenizer.
"""

from functools import partial
from pathlib import Path

from realm_hf.cli.arguments import (
    EngineArguments,
    EvaluationArguments,
    KnowledgeArguments,
    ModelArguments,
    PreTrainingArguments,
    SentenceArguments,
    WarmStartArguments,
)
from realm_hf.cli.corpora import load_tokenizer, prepare_passages, prepare_sentences
from realm_hf.cli.programs import one_line_errors
from realm_hf.data.taggers.names import check_tagger_name
from realm_hf.storage.ray_workers import run_on_ray


def main(
    knowledge: KnowledgeArguments,
    corpus: SentenceArguments,
    _evaluation: EvaluationArguments,
    model_args: ModelArguments,
    _warm: WarmStartArguments,
    args: PreTrainingArguments,
    engine: EngineArguments,
) -> int:
    """Run the command with these arguments; returns its exit code."""
    prepare = partial(_prepare, knowledge, corpus, model_args, args)
    with one_line_errors("prepare"):
        if engine.engine == "ray":
            failed = [message for message in run_on_ray(prepare, engine.workers, cpus=knowledge.num_proc) if message]
            if failed:
                raise SystemExit(failed[0])
        elif (message := prepare()) is not None:
            raise SystemExit(message)
    print(f"Prepared: {args.output_dir}")
    return 0


def _prepare(
    knowledge: KnowledgeArguments, corpus: SentenceArguments, model_args: ModelArguments, args: PreTrainingArguments
) -> str | None:
    """What is wrong with the arguments, if anything."""
    run = Path(args.output_dir)
    try:
        check_tagger_name(corpus.tagger)
        tokenizer = load_tokenizer(model_args)
        prepare_passages(knowledge, tokenizer, run / "passages", args.max_candidate_length)
        prepare_sentences(knowledge, corpus, args, tokenizer, run / "sentences")
    except (OSError, ValueError) as error:
        return str(error)
    except SystemExit as end:
        return str(end.code)
    return None
