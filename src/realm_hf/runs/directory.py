"""The run directory: everything that one training run writes, and all that a builder elsewhere needs.

    RUN/run.json                what the run was created with, and its epoch
    RUN/passages/ tokenizer/    the corpus as token ids, and the tokenizer that made them
    RUN/snapshots/              embedder weights, each the source of one generation
    RUN/index/                  immutable generations; below .builds those that builders are making
    RUN/checkpoints/            of the training loop
    RUN/heartbeats/ logs/       of the builders
    RUN/trainer.lock            who trains here
    RUN/terms/                  the place through which that trainer changes the run: see [`Term`]

An index builder on any machine is given this path and nothing else.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realm_hf.index.default_index import AUTO, plan_index
from realm_hf.models.precision import ENCODE_DTYPES
from realm_hf.runs.checkpoint_names import names_in_checkpoints
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.lock import TrainerLock
from realm_hf.storage.directories import StagedDirectory
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import TEMPORARY_PREFIX, fsync_path, link_or_copy, read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from realm_hf.data.passages.build import PassageStore

PROTOCOL = 1

_PACKAGES = ("realm-hf", "torch", "transformers", "datasets", "accelerate", "faiss-cpu", "numpy")


@dataclass(frozen=True)
class RunConfig:
    """
    The content of `run.json`: what a builder must know beside the passages and the snapshot.

    Args:
        passages_fingerprint (`str`): Fingerprint of RUN/passages.
        tokenizer_fingerprint (`str`): Fingerprint of the tokenizer that made the passages' token ids.
        rows (`int`): Number of passages.
        index_factory (`str`, *optional*, defaults to `"Flat"`): FAISS factory string, "auto" resolved; the metric is
            always the inner product.
        index_train_size (`int`, *optional*): Embeddings to train the index's quantizers on, or `None` for FAISS's own
            choice.
        index_recall (`float`, *optional*): Share of the exact best 5 for which each build searches more lists, or
            `None`: "auto" sets it.
        embedding_dtype (`str`, *optional*, defaults to `"float32"`): Type of the stored embeddings: "float32", or
            "float16", which takes half the disk and rounds coordinates above 2 by up to 0.001 and above 4 by up to
            0.002.
        max_tokens_per_batch (`int`, *optional*): Wordpieces that a builder forwards at once, or `None` for what suits
            its device.
        encode_dtype (`str`, *optional*, defaults to `"float32"`): In what passages are embedded: "auto" (tf32 where a
            builder's device has it, else float32), "float32", "tf32" or "bfloat16". Runs from before there was a
            choice are in float32.
        epoch (`int`, *optional*, defaults to 0): Counts the trainers that took the run's lock (it is the number of
            the newest [`Term`]); snapshots and generations of an earlier one are not served.
        protocol (`int`, *optional*, defaults to `PROTOCOL`): Version of the directory's layout.
        created (`str`, *optional*): ISO 8601, UTC.
        packages (`dict[str, str]`, *optional*): Versions of the libraries that created the run.
    """

    passages_fingerprint: str
    tokenizer_fingerprint: str
    rows: int
    index_factory: str = "Flat"
    index_train_size: int | None = None
    index_recall: float | None = None
    embedding_dtype: str = "float32"
    max_tokens_per_batch: int | None = None
    encode_dtype: str = "float32"
    epoch: int = 0
    protocol: int = PROTOCOL
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    packages: dict[str, str] = field(default_factory=lambda: dict(_package_versions()))

    def __post_init__(self) -> None:
        if self.embedding_dtype not in ("float16", "float32"):
            raise ValueError(f"embedding_dtype is {self.embedding_dtype!r}. Choose float16 or float32.")
        if self.encode_dtype not in ENCODE_DTYPES:
            raise ValueError(f"encode_dtype is {self.encode_dtype!r}. Choose one of: {', '.join(ENCODE_DTYPES)}.")
        if self.rows < 1:
            raise ValueError(f"the run has {self.rows} passages: an index needs at least one. Check the corpus.")
        if self.max_tokens_per_batch is not None and self.max_tokens_per_batch < 1:
            raise ValueError(f"max_tokens_per_batch is {self.max_tokens_per_batch}, but must be at least 1.")


class RunDirectory:
    """Paths, configuration and lock of a run. Get one by [`create`], [`open`] or [`open_or_create`]."""

    def __init__(self, root: str | Path, config: RunConfig):
        self.root = Path(root).absolute()
        self.config = config
        #: Set by `lock()`: through this directory the trainer publishes and removes; see [`Term`].
        self.place: Path | None = None

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.root)!r}, epoch={self.config.epoch}, rows={self.config.rows})"

    @classmethod
    def create(
        cls,
        root: str | Path,
        *,
        passages: PassageStore,
        tokenizer: PreTrainedTokenizerBase,
        index_factory: str = "auto",
        index_train_size: int | None = None,
        embedding_dtype: str = "float32",
        max_tokens_per_batch: int | None = None,
        encode_dtype: str = "auto",
    ) -> RunDirectory:
        """
        Make a run directory; the passages are hard-linked into it where the file system allows, else copied.

        `run.json` is written last: without it the directory is not a run, and `create` may be called again. It holds
        the factory that "auto" stands for, so that a later version with another choice goes on with this one.

        Raises:
            RunDirectoryError: There is a run already.
            OSError: The directory cannot be written to; the message says why.
            ValueError: The tokenizer is not the one that made the passages' token ids.
        """
        from realm_hf.data.vocabulary import tokenizer_fingerprint

        root = Path(root).absolute()
        if (root / "run.json").exists():
            raise RunDirectoryError(f"{root} holds a run already: resume it, or choose another output_dir.")
        made_by = tokenizer_fingerprint(tokenizer)
        if made_by != passages.tokenizer_fingerprint:
            raise ValueError(
                f"The tokenizer (fingerprint {made_by}) is not the one that made the passages "
                f"({passages.tokenizer_fingerprint}): load that one, or build the passages again."
            )
        plan = plan_index(index_factory, len(passages), index_train_size)
        config = RunConfig(
            passages_fingerprint=passages.fingerprint,
            tokenizer_fingerprint=made_by,
            rows=len(passages),
            index_factory=plan.factory,
            index_train_size=plan.train_size,
            index_recall=plan.recall,
            embedding_dtype=embedding_dtype,
            max_tokens_per_batch=max_tokens_per_batch,
            encode_dtype=encode_dtype,
        )
        run = cls(root, config)
        with explain_os_errors("create the run directory", root):
            for path in (run.snapshots, run.index, run.checkpoints, run.heartbeats, run.logs):
                path.mkdir(parents=True, exist_ok=True)
            if not run.passages.exists():
                _link_directory(passages.directory, run.passages)
            if not run.tokenizer.exists():
                with StagedDirectory(run.tokenizer) as staged:
                    tokenizer.save_pretrained(staged.path)
            _write_first(root / "run.json", asdict(config))
        return run

    @classmethod
    def open(cls, root: str | Path) -> RunDirectory:
        """
        Open a run.

        Raises:
            RunDirectoryError: It is no run directory, or one of another version.
        """
        root = Path(root).absolute()
        if not (root / "run.json").exists():
            raise RunDirectoryError(
                f"{root} is not a run directory: it has no run.json. Give the output_dir of a training run."
            )
        return cls(root, _read_config(root))

    @classmethod
    def open_or_create(cls, root: str | Path, **create: Any) -> RunDirectory:
        """
        Open the run if there is one and it was created with the same settings, else create it.

        Raises:
            RunDirectoryError: The run was created with other settings; the message names them.
        """
        if not (Path(root) / "run.json").exists():
            return cls.create(root, **create)
        run = cls.open(root)
        asked = {name: value for name, value in create.items() if name not in ("passages", "tokenizer")}
        # The run's own is what "auto" stood for, or what was chosen instead of it.
        asked = {n: v for n, v in asked.items() if n not in ("index_factory", "encode_dtype") or v != AUTO}
        asked["passages_fingerprint"] = create["passages"].fingerprint
        had = {name: getattr(run.config, name) for name in asked}
        if had != asked:
            differences = ", ".join(f"{n}: {had[n]!r} then, {asked[n]!r} now" for n in asked if had[n] != asked[n])
            raise RunDirectoryError(
                f"{run.root} was created with other settings ({differences}): go back to those, or choose another "
                "output_dir."
            )
        return run

    @property
    def passages(self) -> Path:
        """The corpus: a [`PassageStore`] directory."""
        return self.root / "passages"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, as `save_pretrained` writes it."""
        return self.root / "tokenizer"

    @property
    def snapshots(self) -> Path:
        """Embedder weights that generations are built from."""
        return self.root / "snapshots"

    @property
    def index(self) -> Path:
        """Root of the [`GenerationStore`]."""
        return self.root / "index"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of the training loop."""
        return self.root / "checkpoints"

    @property
    def heartbeats(self) -> Path:
        """One file for each living builder."""
        return self.root / "heartbeats"

    @property
    def logs(self) -> Path:
        """What the builders print."""
        return self.root / "logs"

    @property
    def lock_path(self) -> Path:
        """The file that names the trainer."""
        return self.root / "trainer.lock"

    def lock(self) -> TrainerLock:
        """
        Become the run's trainer for a new term; one process of a training job (its rank 0) does this.

        The epoch in `run.json` grows by one with every trainer, also after an orderly end: a resumed run may go back
        to an earlier step, and must not be served what its predecessor built at a later one.

        Raises:
            RunLocked: A trainer already runs here, or it cannot be known whether one does.
            OSError: The directory cannot be written to; the message says why.
        """
        lock = TrainerLock.acquire(self.lock_path, self.read_epoch())
        # Only a trainer that holds the lock may move the epoch: one that is refused must not fence off the one that
        # runs.
        try:
            with lock.term.enforced():
                self.config = replace(_read_config(self.root), epoch=lock.term.number)
                write_json(self.root / "run.json", asdict(self.config), place=lock.term.place)
            self.place = lock.term.place
        except BaseException:
            lock.release()
            raise
        return lock

    def read_epoch(self) -> int:
        """The epoch in `run.json` as it is now; a builder asks this anew before it picks a snapshot."""
        return _read_config(self.root).epoch

    def named_by_checkpoints(self) -> set[str]:
        """Names of generations and snapshots that checkpoints hold, or may hold; collection keeps them."""
        return names_in_checkpoints(self.checkpoints, (self.index, self.snapshots))


def _read_config(root: Path) -> RunConfig:
    content = read_json(root / "run.json", RunDirectoryError)
    if content.get("protocol") != PROTOCOL:
        raise RunDirectoryError(
            f"{root} has run directory protocol {content.get('protocol')!r}, this version reads {PROTOCOL}: use the "
            "realm-hf version that created it, or start a new run."
        )
    known = {f.name for f in fields(RunConfig)}
    missing = {"passages_fingerprint", "tokenizer_fingerprint", "rows"} - content.keys()
    if missing or content.keys() - known:
        odd = ", ".join(sorted(missing | (content.keys() - known)))
        raise RunDirectoryError(f"{root / 'run.json'} lacks or has unknown fields ({odd}): restore it from a copy.")
    return RunConfig(**content)


def _package_versions() -> Iterable[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue  # faiss may be installed as faiss-gpu, this package be run from its source


def _write_first(path: Path, content: dict[str, Any]) -> None:
    """
    Write a file that must not be there: one process may have made the run that another was about to make, and a late
    rename would set its epoch back.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        write_json(temporary, content)
        os.link(temporary, path)
    except FileExistsError:
        raise RunDirectoryError(
            f"{path.parent} was made a run by another process at this moment: start again to resume it, or choose "
            "another output_dir."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def _link_directory(source: Path, final: Path) -> None:
    # The passages never change once written, so that a second name for the same file is as good as a copy.
    with StagedDirectory(final) as staged:
        shutil.copytree(source, staged.path, copy_function=link_or_copy, dirs_exist_ok=True)
