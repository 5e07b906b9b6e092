"""How often a retriever finds a passage with the answer: several checkpoints beside BM25, over the same passages.

    python examples/evaluate_retrieval.py --passages RUN/passages --questions questions.jsonl \
        --models initial=google-bert/bert-base-uncased realm=RUN/model
    python examples/evaluate_retrieval.py --run RUN --questions questions.jsonl

Questions are JSON lines with `question` and `answer` (a string or a list of strings). Recall@k is by answer string:
one of the first k passages holds one of the answers as a run of whole tokens, in lower case. With `--gold_column` it
is by gold passages, named by number or text. nDCG@10 counts all gold passages; by answer string, the first passage
that holds one. Every checkpoint embeds all passages anew, and the search is exact. `--run` takes the generations that
a run of pre-training has kept, each with the weights it was built from, and embeds nothing but the questions.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from by_words import word_rows
from realm_hf import BM25Source, RealmEmbedder, RealmForPreTraining, RealmRetriever, build_index, embed_passages
from realm_hf.data import MAX_QUERY_LENGTH, PassageStore, load_questions
from realm_hf.training import RetrievalQuestions

NDCG_AT = 10


def load_embedder(name: str, pooler: str) -> RealmEmbedder:
    """The passage tower of a REALM checkpoint, or one started from a checkpoint of BERT or of another encoder."""
    kind = AutoConfig.from_pretrained(name).model_type
    if kind == "bert":
        return RealmEmbedder.from_bert(name, pooler=pooler)  # type: ignore[arg-type]
    if kind == "realm":
        return RealmForPreTraining.from_pretrained(name).embedder.eval()
    return RealmEmbedder.from_encoders(embedder=name)


def tokenizer_of(args: argparse.Namespace) -> PreTrainedTokenizerBase:
    """The tokenizer that made the passages."""
    named = args.tokenizer or (args.models[0].partition("=")[2] if args.run is None else args.run / "tokenizer")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(named)
    return tokenizer


def dense_rows(
    name: str, args: argparse.Namespace, passages: PassageStore, questions: list[str], k: int
) -> np.ndarray:
    """Rows int64 `[Q, k]` of the passages that a checkpoint retrieves."""
    embedder = load_embedder(name, args.pooler)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or name)
    with tqdm(total=len(passages), desc=f"embedding for {name}", unit="passage") as bar:
        embeddings = embed_passages(embedder, passages, progress=lambda done, _: bar.update(done - bar.n))
    retriever = RealmRetriever(passages, tokenizer, index=build_index(embeddings), embeddings=embeddings)
    return retrieved_rows(embedder, retriever, args, questions, k)


def retrieved_rows(
    embedder: RealmEmbedder, retriever: RealmRetriever, args: argparse.Namespace, questions: list[str], k: int
) -> np.ndarray:
    """Rows int64 `[Q, k]` for questions that `embedder` embeds."""
    queries = embedder.encode(questions, tokenizer=retriever.tokenizer, max_length=args.max_query_length)
    return np.asarray(retriever.retrieve(queries, k, null_passage=False).rows)


def generations_rows(
    run: Path, args: argparse.Namespace, questions: list[str], k: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and rows of each generation that the run still has with its snapshot, oldest first."""
    folders = {path: int(path.name.split("-")[1]) for path in (run / "index").glob("step-*/")}
    for folder, step in sorted(folders.items(), key=lambda item: item[1]):
        retriever = RealmRetriever.from_pretrained(folder)
        if retriever.embedder is not None:  # in pre-training it embeds queries, too
            yield f"step {step}", retrieved_rows(retriever.embedder, retriever, args, questions, k)


def main() -> int:
    """Evaluate all checkpoints and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="evaluate the kept generations of this run")
    parser.add_argument("--passages", type=Path, help="a passage store (default: that of --run)")
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines: question, answer")
    parser.add_argument("--gold_column", help="column of the gold passages: numbers of documents, or texts")
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME=CHECKPOINT", help="folders or Hub ids")
    parser.add_argument("--tokenizer", help="by default each checkpoint's own")
    parser.add_argument("--pooler", choices=["checkpoint", "identity"], default="identity", help="of BERT checkpoints")
    parser.add_argument("--ks", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--max_query_length", type=int, default=MAX_QUERY_LENGTH)
    parser.add_argument("--no_bm25", action="store_true", help="leave BM25 out")
    parser.add_argument("--output", type=Path, help="write the table as JSON too")
    args = parser.parse_args()

    if args.passages is None and args.run is None:
        parser.error("--passages or --run is needed: what is searched")
    if args.run is None and not (args.models or args.tokenizer):
        parser.error("--models or --tokenizer is needed beside --passages: which tokenizer made them")
    passages = PassageStore.load(args.passages or args.run / "passages")
    examples = load_questions(args.questions, gold_column=args.gold_column, need_answers=False)
    questions = [example.question for example in examples]
    asked = RetrievalQuestions(examples, passages, tokenizer_of(args), args.max_query_length)
    k = max(*args.ks, NDCG_AT)

    def recall(found: np.ndarray) -> dict[str, float]:
        judged = asked.judge(range(len(asked)), found)
        shares = {str(depth): share for depth, share in judged.recall(args.ks).items()}
        shares[f"ndcg@{NDCG_AT}"] = float(judged.ndcg(NDCG_AT).mean())
        return {name: round(100 * share, 1) for name, share in shares.items()}

    table: dict[str, dict[str, float]] = {}
    if args.run is not None:
        for name, found in generations_rows(args.run, args, questions, k):
            table[name] = recall(found)
    for pair in args.models:
        name, _, checkpoint = pair.partition("=")
        if not checkpoint:
            parser.error(f"--models takes NAME=CHECKPOINT, but got {pair!r}")
        started = time.perf_counter()
        table[name] = recall(dense_rows(checkpoint, args, passages, questions, k))
        table[name]["seconds"] = round(time.perf_counter() - started, 1)
    if not args.no_bm25:
        words = BM25Source.build(passages, tokenizer_of(args))
        table["BM25"] = recall(word_rows(words, passages, asked.ids, k))

    by = "gold passages" if args.gold_column else "answer string"
    print(f"\n{len(questions):,} questions over {len(passages):,} passages, in percent by {by}\n")
    shown = {**{str(depth): f"recall@{depth}" for depth in args.ks}, f"ndcg@{NDCG_AT}": f"nDCG@{NDCG_AT}"}
    print("| retriever |" + "".join(f" {title} |" for title in shown.values()) + "\n|---|" + "---|" * len(shown))
    for name, figures in table.items():
        print(f"| {name} |" + "".join(f" {figures[key]:.1f} |" for key in shown))
    if args.output:
        args.output.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
