"""REALM on real text, from nothing: its arms, three seeds, recall of paragraphs by questions that were never seen.

    python benchmarks/real_text.py --passages passages.parquet --train train.parquet --dev dev.parquet \
        --weights runs/masked-lm-small/model --output_dir runs/real_text
    python benchmarks/real_text.py ... --choose --arms realm --retriever_learning_rate 1e-4 --results choice.jsonl
    python benchmarks/real_text.py ... --labels 128 1024
    python benchmarks/real_text.py ... --articles wikipedia.parquet --questions nq_open.dev.jsonl web_questions.jsonl
    python benchmarks/real_text.py --tables docs/results/real-text.md

The weights have seen text alone, no question (`realm-hf warm-start masked-lm --from_nothing`). The corpus is SQuAD's
paragraphs, cut into passages at their sentences; every dev question is asked of all paragraphs, each of which scores
as its best passage. `--choose` asks 2,000 train questions instead: settings are chosen by it.

    start                  the encoder, read as the mean of its tokens
    warm start             recurring spans and the inverse cloze task, half of the steps each
    warm start, continued  more of it, for the seconds of reading and REALM
    realm                  the encoder reads, then both learn; half of the candidates by BM25, and spans are masked
                           that one of BM25's holds (harness/answered_masks.py)
    posterior shuffled     the same, but the retriever is not told which candidate helped
    uniform masks          15 % of the wordpieces; with its own reading, as the other kinds of masks
    never refreshed        the index stays the warm start's

and on one seed: random spans, salient (all of them), recurring (those that other passages hold), 30 times stale, no
null passage, no exclusion, ICT alone (no REALM), dense candidates (none by BM25). BM25 stands beside them.

A second measure asks `--questions` of `--articles`, another corpus than the one that retrieval was learned on: those
that name an article with the answer (harness/article_questions.py).

A third, `--held_out_masks`, asks what REALM trains for: a passage for a masked sentence that was held out, its own
paragraph left out (harness/held_out_masks.py).

A call trains what is not there yet: stages that arms share are trained once and stay in the output directory, and an
arm of a seed is a line of real-text.jsonl with its curves. It can be stopped and started at any time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from harness.arms import Row, measure_missing, sections
from harness.article_questions import ArticleQuestions
from harness.contrastive_starts import BOTH, ICT, RECURRING
from harness.few_labels import BOTH as BOTH_TOWERS
from harness.few_labels import QUERY, LabelledQuestion, fine_tuned, labelled
from harness.held_out_masks import HeldOutMasks
from harness.paragraph_corpus import ParagraphCorpus
from harness.passage_vectors import stage_vectors
from harness.real_text_table import UTILITY, section
from harness.realm_stages import RealmStages, Variant, add_realm_arguments
from harness.results import Line, add_result_arguments, measure_or_write_tables
from harness.retrieval import DEPTH, gold_ranks, means, sums_by_article
from harness.squad import Questions, add_file_arguments
from harness.stages import Stage, curve, evaluations
from harness.stop_after import add_stop_argument, stop_after

from realm_hf import RealmForPreTraining, RealmTokenizer
from realm_hf.storage.files import json_sha256

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from bm25 import bm25_rows

RESULTS = Path(__file__).resolve().parent / "real-text.jsonl"
START, WARM, CONTINUED, REALM, BM25 = "start", "warm start", "warm start, continued", "realm", "BM25"
STALE, ICT_ALONE = "30 times stale", "ICT alone"
#: Three seeds, then one.
SEVERAL = {
    REALM: Variant(),
    "posterior shuffled": Variant(shuffled=True),
    "uniform masks": Variant(masking="uniform"),
    "never refreshed": Variant(arguments={"refresh": "off"}),
}
ONCE = {
    "random spans": Variant(masking="span"),
    "salient": Variant(masking="salient"),
    "recurring": Variant(masking="recurring"),
    STALE: Variant(),
    "no null passage": Variant(null=False),
    "no exclusion": Variant(exclusion=False),
    "dense candidates": Variant(dense=True),
}
ARMS = [BM25, START, WARM, *SEVERAL, CONTINUED, *ONCE, ICT_ALONE]
FEW = (START, WARM, CONTINUED, REALM)
_CHOSEN_BY = 2_000
_CURVES = (*UTILITY, "recall_at_1", "recall_at_5", "recall_at_20")


class Arms:
    """The arms of one call, with what they share.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, folder = args, Path(args.output_dir)
        self.tokenizer = RealmTokenizer.from_pretrained(args.tokenizer or args.weights)
        sizes = {name: getattr(args, name) for name in ("max_passage_length", "max_query_length")}
        self.corpus = ParagraphCorpus(args.passages, self.tokenizer, folder / "data", **sizes)
        train = Questions.read(args.train)
        order = np.random.default_rng(0).permutation(len(train.gold)).tolist()
        chosen_by = min(_CHOSEN_BY, len(order) // 2)
        #: For choosing settings and for the curves; what is fine-tuned on comes from behind them.
        self.choice, self.labels = train.take(order[:chosen_by]), train.take(order[chosen_by:])
        self.asked = self.choice if args.choose else Questions.read(args.dev)
        probes = self.choice.take(range(min(args.probes, chosen_by)))
        self.stages = RealmStages(args, self.corpus, probes.with_gold())

    def settings(self) -> dict[str, Any]:
        """What a line was measured on; another line is measured again."""
        args = self.args
        named = Path(args.weights)
        left_out = {"passages", "train", "dev", "output_dir", "weights", "tokenizer", "seeds", "arms", "results"}
        left_out |= {"tables", "choose", "probes", "labels", "label_steps", "label_batch_size", "label_learning_rate"}
        left_out |= {"articles", "questions", "article_passage_length", "stop_after_minutes", "held_out_masks"}
        start = self.stages.start(0)  # Of the same seed for all calls, which may have other seeds.
        return {
            "weights": f"{named.parent.name if named.name == 'model' else named.name} {start.key}",
            "passages": f"{len(self.corpus.passages)} of {self.corpus.passages.fingerprint}",
            "paragraphs": len(self.corpus),
            "sentences": f"{len(self.corpus.sentences)} of {self.corpus.sentences.fingerprint}",
            "questions": len(self.asked.gold),
            "asked": f"{'train' if args.choose else 'dev'} {json_sha256({'questions': self.asked.texts})[:12]}",
            **{name: value for name, value in vars(args).items() if name not in left_out},
        }

    # What is trained

    def stage(self, arm: str, seed: int) -> Stage:
        """Where an arm of a seed ends."""
        stages, args = self.stages, self.args
        if arm == START:
            return stages.start(seed)
        if arm in (WARM, ICT_ALONE):
            return stages.warm_start(seed, ICT if arm == ICT_ALONE else args.warm_start)
        if arm == CONTINUED:
            warm, spent = stages.warm_start(seed, args.warm_start), self.seconds(REALM, seed)
            steps = max(1, round(spent * warm.facts["steps"] / warm.facts["seconds"]))
            return stages.warm_start(seed, args.warm_start, before=warm, steps=steps)
        variant = (SEVERAL | ONCE)[arm]
        if arm == STALE:
            variant = Variant(arguments={"refresh_steps": 30 * args.refresh_steps})
        return stages.realm(seed, arm, variant)

    def seconds(self, arm: str, seed: int) -> float:
        """What an arm took beyond what it started from: reading and pre-training, or the warm start."""
        spent = float(self.stage(arm, seed).facts["seconds"])
        if arm in SEVERAL | ONCE:
            masking = (SEVERAL | ONCE)[arm].masking or self.args.masking
            spent += self.stages.reading(seed, masking).facts["seconds"]
        return spent

    def arms_of(self, seed: int) -> Iterator[str]:
        """The arms of a seed, in the order in which they are trained."""
        args = self.args
        for arm in ARMS:
            once = arm in (BM25, ICT_ALONE, *ONCE)
            # At this size 30 times stale may be never; and the mask of REALM is an arm already.
            same = (arm == STALE and 30 * args.refresh_steps >= args.max_steps) or (
                arm in ONCE and ONCE[arm].masking == args.masking
            )
            if (args.arms is None or arm in args.arms) and not same and (not once or seed == args.seeds[0]):
                yield arm

    # What is measured

    def line(self, arm: str, seed: int) -> Line:
        """Recall of one arm, with the curves of its training."""
        if arm == BM25:
            rows = bm25_rows(self.corpus, self.asked.texts, DEPTH)  # type: ignore[arg-type]
            ranks = gold_ranks(rows, np.array(self.asked.gold), self.corpus.groups)
            return {**self._figures(ranks), "seconds": 0.0}
        stage = self.stage(arm, seed)
        line = {**self._recall(stage, stage.model()), "seconds": round(self.seconds(arm, seed), 1)}
        if arm in SEVERAL | ONCE:
            log = stage.log()
            line |= {name: round(stage.facts["metrics"][f"eval_{name}"], 4) for name in UTILITY}
            line |= {"curve": curve(log), "evaluations": evaluations(log, _CURVES)}
        return line

    def labelled_line(self, arm: str, seed: int, count: int, towers: str) -> Line:
        """Recall after fine-tuning on `count` train questions."""
        args = self.args
        run, stage = Path(args.output_dir) / "few_labels", self.stage(arm, seed)
        model = fine_tuned(
            stage.model(),
            towers,
            self.corpus,
            self._labelled[:count],
            run,
            max_steps=args.label_steps,
            per_device_train_batch_size=args.label_batch_size,
            learning_rate=args.label_learning_rate,
            seed=seed,
        )
        return self._recall(stage, model)

    @cached_property
    def articles(self) -> ArticleQuestions:
        """The second measure's questions and passages."""
        args, corpus = self.args, self.corpus
        length = args.article_passage_length
        return ArticleQuestions(args.articles, args.questions, self.tokenizer, corpus.folder, max_length=length)

    def article_line(self, arm: str, seed: int) -> Line:
        """What an arm finds in the articles."""
        if arm == BM25:
            return {**self.articles.line_of_bm25(), "seconds": 0.0}
        found = self.articles.line(self.stage(arm, seed).model(), self.args.encode_dtype)
        return {**found, "seconds": round(self.seconds(arm, seed), 1)}

    @cached_property
    def masks(self) -> HeldOutMasks:
        """The third measure's masked sentences."""
        return HeldOutMasks(self.corpus)

    def mask_line(self, arm: str, seed: int) -> Line:
        """What an arm finds for them."""
        if arm == BM25:
            return {**self.masks.line_of_bm25(), "seconds": 0.0}
        stage = self.stage(arm, seed)
        model = stage.model()
        found = self.masks.line(self._vectors(stage, model), model.query_embedder)
        return {**found, "seconds": round(self.seconds(arm, seed), 1)}

    @cached_property
    def _labelled(self) -> list[LabelledQuestion]:
        return labelled(self.corpus, self.labels.take(range(min(max(self.args.labels), len(self.labels.gold)))))

    def _vectors(self, stage: Stage, model: RealmForPreTraining) -> np.ndarray:
        return stage_vectors(stage, model.eval(), self.corpus.passages, self.args.encode_dtype)

    def _recall(self, stage: Stage, model: RealmForPreTraining) -> Line:
        vectors, asked = self._vectors(stage, model), self.asked
        return self._figures(self.corpus.ranks(vectors, model.query_embedder, asked.texts, asked.gold))

    def _figures(self, ranks: np.ndarray) -> Line:
        sums = sums_by_article(np.minimum(ranks, DEPTH), self.corpus.articles[self.asked.gold])
        return {**means(sums), "by_article": sums}

    def arm_rows(self, line: Callable[[str, int], Line]) -> Iterator[Row]:
        """A line for each arm of each seed."""
        for seed in self.args.seeds:
            for arm in self.arms_of(seed):
                yield {"arm": arm, "seed": seed, "labels": 0}, partial(line, arm, seed)

    def few_labels_rows(self) -> Iterator[Row]:
        """What few labels make of some arms."""
        args = self.args
        trained = f"{args.label_steps} steps of {args.label_batch_size} at {args.label_learning_rate:g}"
        for seed in args.seeds:
            for arm in [arm for arm in FEW if arm in self.arms_of(seed)]:
                for count in args.labels:
                    for towers in (QUERY, BOTH_TOWERS):
                        names = {"arm": arm, "seed": seed, "labels": count, "towers": towers, "trained": trained}
                        yield names, partial(self.labelled_line, arm, seed, count, towers)


def measure(args: argparse.Namespace) -> None:
    """Train the arms that have no line, and write one for each."""
    if (args.articles is None) != (args.questions is None):
        raise SystemExit("--articles and --questions belong together: name both, or neither.")
    stop_after(args.stop_after_minutes)
    arms, code = Arms(args), ("benchmarks", "examples/bm25.py")
    settings = arms.settings()
    measure_missing(args.results, [*arms.arm_rows(arms.line), *arms.few_labels_rows()], settings, *code)
    if args.held_out_masks:
        measure_missing(args.results, arms.arm_rows(arms.mask_line), settings | arms.masks.settings(), *code)
    if args.questions:
        settings |= arms.articles.settings()
        measure_missing(args.results, arms.arm_rows(arms.article_line), settings, *code)


def table(lines: list[Line]) -> str:
    """Markdown: a section for each setting."""
    compared = [(REALM, other) for other in ARMS if other not in (REALM, BM25)]
    return sections(lines, lambda found: section(found, ARMS, compared))


def make_parser() -> argparse.ArgumentParser:
    """The options of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_result_arguments(parser, RESULTS)
    add_file_arguments(parser)
    add_stop_argument(parser)
    parser.add_argument("--output_dir", type=Path, required=True, help="corpora, stages and models are kept here")
    parser.add_argument("--weights", required=True, help="an encoder of `realm-hf warm-start masked-lm`")
    parser.add_argument("--tokenizer", help="whose vocabulary is used; default: that of the weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first has the arms of one seed")
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", help=f"{', '.join(ARMS)}; default: all")
    parser.add_argument("--choose", action="store_true", help="ask 2,000 train questions in place of the dev ones")
    parser.add_argument("--probes", type=int, default=500, help="train questions asked at each swap, for the curves")
    second = parser.add_argument_group("the second measure")
    second.add_argument("--articles", type=Path, help="a Parquet file of passages: title, text")
    second.add_argument(
        "--questions", type=Path, nargs="+", metavar="FILE", help="with answers; asked of the articles"
    )
    second.add_argument("--article_passage_length", type=int, default=160, help="wordpieces of a passage")
    parser.add_argument("--held_out_masks", action="store_true", help="the third measure: ask masked sentences, too")
    size = parser.add_argument_group("model and corpus")
    size.add_argument("--dimension", type=int, default=128, help="of embeddings")
    size.add_argument("--max_passage_length", type=int, default=96, help="wordpieces of a passage")
    warm = parser.add_argument_group("warm start")
    warm.add_argument("--warm_start", choices=(ICT, RECURRING, BOTH), default=BOTH)
    warm.add_argument("--warm_start_steps", type=int, default=700)
    warm.add_argument("--warm_start_batch_size", type=int, default=128)
    warm.add_argument("--warm_start_learning_rate", type=float, default=3e-4)
    add_realm_arguments(parser)
    few = parser.add_argument_group("few labels")
    few.add_argument(
        "--labels", type=int, nargs="*", default=[], help="train questions to fine-tune on, e.g. 128 1024"
    )
    few.add_argument("--label_steps", type=int, default=320)
    few.add_argument("--label_batch_size", type=int, default=32)
    few.add_argument("--label_learning_rate", type=float, default=5e-5)
    return parser


def main() -> None:
    """Train what is missing and print the tables, or write them into a page."""
    measure_or_write_tables(table, RESULTS, make_parser, measure)


if __name__ == "__main__":
    main()
