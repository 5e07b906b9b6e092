"""The arguments of each training, beside those of [`LoopArguments`] that they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from realm_hf.models.cut_lengths import MAX_PASSAGE_LENGTH, MAX_QUERY_LENGTH
from realm_hf.runs.snapshot_schedule import SnapshotSchedule
from realm_hf.training.candidate_counts import written_mix
from realm_hf.training.loop_arguments import LoopArguments

RefreshMode = Literal["sync", "async", "external", "off"]
OnStale = Literal["continue", "wait", "sync"]
Masking = Literal["salient", "recurring", "span", "uniform"]
Marginalization = Literal["token", "span"]
EmbeddingDtype = Literal["float32", "float16"]
EncodeDtype = Literal["auto", "float32", "tf32", "bfloat16"]
QueryEncoder = Literal["snapshot", "live"]


@dataclass
class InverseClozeTrainingArguments(LoopArguments):
    """Parameters of the ICT warm start (ORQA, section 5; REALM, section 3.4).

    The contrastive batch is `per_device_train_batch_size * gradient_accumulation_steps * processes`: by gradient
    caching every accumulated example is a negative for all others, so memory does not bound the negatives.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate (REALM 3e-5, ICT 1e-4)."})
    keep_probability: float = field(
        default=0.1, metadata={"help": "How often the sentence stays in its passage, so that words are learned too."}
    )
    mask_probability: float = field(
        default=0.0, metadata={"help": "How often some wordpieces of the sentence are masked, as in pre-training."}
    )
    max_query_length: int = field(
        default=MAX_QUERY_LENGTH, metadata={"help": "Wordpieces of a query, special tokens included."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep_probability", "mask_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, but is a probability: between 0 and 1.")
        self._at_least(4, "max_query_length")
        if self.per_device_train_batch_size * self.gradient_accumulation_steps < 2:
            raise ValueError(
                "The contrastive batch is 1: an example has no negative. Raise per_device_train_batch_size or "
                "gradient_accumulation_steps."
            )


@dataclass
class RecurringSpanTrainingArguments(InverseClozeTrainingArguments):
    """Parameters of the warm start by recurring spans (Ram et al., 2022)."""

    keep_probability: float = field(
        default=0.5, metadata={"help": "How often the span stays in the query, so that words are learned too."}
    )
    mask_probability: float = field(default=0.0, init=False)


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


@dataclass
class RefreshArguments(LoopArguments):
    """Parameters that the loops with an index share: pre-training and fine-tuning."""

    # Parameters that control the optimizer
    retriever_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Peak rate of the towers, on the same schedule; default: learning_rate, as published."},
    )

    # Parameters that control the refresh of the index (section 3.3)
    refresh: RefreshMode = field(default="async", metadata={"help": "sync, async, external or off."})
    refresh_steps: int = field(default=500, metadata={"help": "A snapshot for the builder every so many steps."})
    refresh_schedule: str | None = field(
        default=None,
        metadata={"help": "In place of refresh_steps, e.g. 0-1000:250,1000-:1000: every 250 steps, later every 1000."},
    )
    max_staleness: int | None = field(
        default=None, metadata={"help": "Steps that the served generation may lag behind; see on_stale."}
    )
    on_stale: OnStale = field(
        default="continue", metadata={"help": "Beyond max_staleness: continue (and warn), wait, or sync (build now)."}
    )
    index_factory: str = field(
        default="auto",
        metadata={
            "help": "A FAISS factory string, or exact-sharded: each rank holds a share of the rows; auto: Flat up to "
            "100,000 passages, then exact-sharded where GPUs can hold it, else lists at recall 0.97."
        },
    )
    encode_dtype: EncodeDtype = field(
        default="auto",
        metadata={"help": "Passages are embedded in float32, tf32 or bfloat16; auto: tf32 on GPUs that have it."},
    )
    index_threads: int | None = field(
        default=None,
        metadata={"help": "CPU threads of the index; default: all cores where training does not need them."},
    )
    builder_threads: int = field(default=1, metadata={"help": "CPU threads of the builder process."})
    builder_device: str = field(
        default="cpu", metadata={"help": "Device of the builder, e.g. cuda:1, or cuda:1,cuda:2."}
    )
    keep_generations: int = field(
        default=2, metadata={"help": "Newest generations left on disk, with their snapshots; 0: all."}
    )
    embedding_dtype: EmbeddingDtype | None = field(
        default=None, metadata={"help": "Passages' vectors are stored in float32 (default) or float16: half the disk."}
    )
    index_train_size: int | None = field(
        default=None, metadata={"help": "Vectors to train the index's quantizers on; default: FAISS's own choice."}
    )
    max_tokens_per_batch: int | None = field(
        default=None, metadata={"help": "Wordpieces a builder embeds at once; default: what suits its device."}
    )
    probe_queries: int = field(default=32, metadata={"help": "Queries on which each swap's churn is measured."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retriever_learning_rate is not None and not self.retriever_learning_rate > 0:
            raise ValueError(f"retriever_learning_rate is {self.retriever_learning_rate}. Give a positive one.")
        self._one_of("refresh", get_args(RefreshMode))
        self._one_of("on_stale", get_args(OnStale))
        self._one_of("encode_dtype", get_args(EncodeDtype))
        self._at_least(1, "refresh_steps", "builder_threads")
        self._at_least(0, "probe_queries", "keep_generations")
        for name in ("index_threads", "index_train_size", "max_tokens_per_batch"):
            if getattr(self, name) is not None:
                self._at_least(1, name)
        if self.embedding_dtype is not None:
            self._one_of("embedding_dtype", get_args(EmbeddingDtype))
        schedule = self.snapshot_schedule
        if self.max_staleness is None:
            if self.on_stale != "continue":
                raise ValueError(f"on_stale is {self.on_stale!r}, but max_staleness is not set. Give it in steps.")
        elif self.max_staleness < schedule.longest:
            name = "refresh_steps" if self.refresh_schedule is None else "refresh_schedule's longest interval"
            raise ValueError(
                f"max_staleness is {self.max_staleness} steps, but a new generation is begun only every {name} "
                f"= {schedule.longest}. Raise the first or lower the second."
            )
        if self.on_stale == "sync" and self.refresh in ("external", "off"):
            raise ValueError(
                f"on_stale='sync' builds in the trainer, which refresh={self.refresh!r} forbids. Use on_stale='wait' "
                "or refresh='async'."
            )
        if self.refresh == "off" and self.max_staleness is not None:
            raise ValueError("refresh='off' never renews the index, so max_staleness cannot hold. Drop one of them.")

    @property
    def snapshot_schedule(self) -> SnapshotSchedule:
        """When snapshots are taken: by `refresh_schedule`, or every `refresh_steps`."""
        if self.refresh_schedule is not None:
            return SnapshotSchedule.parse(self.refresh_schedule)
        return SnapshotSchedule.every(self.refresh_steps)

    @property
    def index_settings(self) -> dict[str, Any]:
        """What a run directory is created with; an existing one must agree, except on what is left at `None` here."""
        optional = ("embedding_dtype", "index_train_size", "max_tokens_per_batch")
        given = {name: getattr(self, name) for name in optional if getattr(self, name) is not None}
        return {"index_factory": self.index_factory, "encode_dtype": self.encode_dtype, **given}


@dataclass
class RealmTrainingArguments(RefreshArguments):
    """Parameters of REALM pre-training (section 3)."""

    can_shard = True

    # Parameters that control the example
    masking: Masking = field(
        default="salient", metadata={"help": "salient (section 3.4), recurring, span or uniform."}
    )
    max_masked_tokens: int = field(default=10, metadata={"help": "A longer span is skipped, and counted."})
    max_query_length: int = field(
        default=MAX_QUERY_LENGTH, metadata={"help": "Wordpieces of a query, special tokens included."}
    )
    max_candidate_length: int = field(
        default=MAX_PASSAGE_LENGTH, metadata={"help": "Wordpieces of a candidate, specials included."}
    )

    # Parameters that control the objective
    num_candidates: int = field(default=8, metadata={"help": "K, the null passage counted."})
    candidate_mix: str | None = field(
        default=None,
        metadata={
            "help": "How many from where, e.g. bm25=4,dense=3; default: all from the index. Shares of rerank_depth."
        },
    )
    marginalization: Marginalization | None = field(
        default=None, metadata={"help": "token (released) or span (paper, eq. 1). Default: what the model says."}
    )
    freeze_retriever_steps: int = field(
        default=0, metadata={"help": "The towers get no update in the first so many steps: the encoder reads first."}
    )
    reading_candidates: int | None = field(
        default=None,
        metadata={"help": "K while the towers are frozen; default: num_candidates. Fewer means faster steps."},
    )
    detach_retrieval: bool = field(
        default=False, metadata={"help": "Ablation: p(z|x) is a constant, so that the retriever learns nothing."}
    )
    in_batch_candidates: bool = field(
        default=False,
        metadata={
            "help": "Candidates of a micro-batch's other queries count in p(z|x), unread, at the null passage's worth."
        },
    )
    freeze_encoder: bool = field(
        default=False,
        metadata={
            "help": "Only the retriever learns: the encoder reads without a backward pass, as it has learned to."
        },
    )

    # Parameters that control retrieval
    retrieval_depth: int = field(default=1, metadata={"help": "Steps whose candidates are retrieved in advance."})
    rerank_depth: int | None = field(
        default=None,
        metadata={"help": "L candidates are retrieved, and the best by the towers of the step are kept."},
    )
    query_encoder: QueryEncoder = field(
        default="snapshot",
        metadata={"help": "snapshot: queries by the weights the index was built from (released); live: by today's."},
    )

    # Parameters that control the held-out evaluation
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Examples a device evaluates at once."})
    max_eval_sentences: int = field(default=256, metadata={"help": "Evaluate on the first so many held-out ones."})
    max_eval_questions: int | None = field(
        default=None, metadata={"help": "Of the questions for the retrieval ask the first so many; default: all."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("masking", get_args(Masking))
        self._one_of("query_encoder", get_args(QueryEncoder))
        if self.max_eval_questions is not None:
            self._at_least(1, "max_eval_questions")
        if self.reading_candidates is not None:
            self._at_least(1, "reading_candidates")
            if self.freeze_retriever_steps == 0:
                raise ValueError(
                    f"reading_candidates is {self.reading_candidates}, but freeze_retriever_steps is 0: no step would "
                    "use it. Set the second, or drop the first."
                )
        if self.freeze_encoder and (self.freeze_retriever_steps or self.detach_retrieval):
            raise ValueError(
                f"freeze_encoder is set, but freeze_retriever_steps is {self.freeze_retriever_steps} and "
                f"detach_retrieval {self.detach_retrieval}: nothing would learn. Drop one of them."
            )
        if self.in_batch_candidates and self.per_device_train_batch_size < 2:
            raise ValueError(
                f"in_batch_candidates is set, but per_device_train_batch_size is {self.per_device_train_batch_size}: "
                "a micro-batch has no other query. Raise the second; accumulated micro-batches do not see each other."
            )
        if self.rerank_depth is not None and self.rerank_depth <= self.num_candidates:
            raise ValueError(
                f"rerank_depth is {self.rerank_depth}, but num_candidates is {self.num_candidates}: none would be "
                "left out. Raise the first (the null passage is counted in both), or drop it."
            )
        if self.rerank_depth is not None and self.candidate_mix is not None:
            raise ValueError(
                f"candidate_mix is {self.candidate_mix!r} and rerank_depth {self.rerank_depth}: the first fixes how "
                "many come from where, the second keeps the best whatever found them. Drop one of them."
            )
        if self.marginalization is not None:
            self._one_of("marginalization", get_args(Marginalization))
        self._at_least(1, "max_masked_tokens", "num_candidates", "per_device_eval_batch_size", "max_eval_sentences")
        self._at_least(0, "freeze_retriever_steps", "retrieval_depth")
        self._at_least(4, "max_query_length", "max_candidate_length")
        if self.candidate_mix is not None:
            left = self.num_candidates - 1
            says = f"num_candidates = {self.num_candidates} leaves {left} beside the null passage"
            self.candidate_mix = written_mix(self.candidate_mix, left, says)
