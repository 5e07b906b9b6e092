"""When a bar is shown: on a terminal, after two seconds, by one process; or at once, if it was asked for."""

import io
from types import SimpleNamespace

import pytest

from realm_hf import embed_passages, progress
from realm_hf.data import find_recurring_spans
from realm_hf.knowledge.bm25 import build_bm25
from realm_hf.progress import progress_bar
from realm_hf.storage import files


class Screen(io.StringIO):
    def isatty(self):
        return True


def waited(seconds, monkeypatch, **settings):
    """What is on the screen after three passages, each of which took so many seconds."""
    screen, clock = Screen(), [100.0]
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with progress_bar(3, "embedding", "passages", **settings) as bar:
        for _ in range(3):
            clock[0] += seconds
            bar.update(1)
    return screen.getvalue()


@pytest.mark.parametrize(("seconds", "is_seen"), [(0.5, False), (5.0, True)])
def test_a_wait_of_more_than_two_seconds_is_seen(monkeypatch, seconds, is_seen):
    seen = waited(seconds, monkeypatch)
    assert ("embedding" in seen) == is_seen
    if is_seen:
        assert "2/3" in seen and "<00:05" in seen, "the time that is left"
        assert seen.rstrip("\r").endswith(" "), "it is wiped at the end"


@pytest.mark.parametrize("where", ["a file", "another rank"])
def test_a_file_and_other_ranks_get_none_unless_asked(monkeypatch, where):
    if where == "a file":
        monkeypatch.setattr(Screen, "isatty", lambda self: False)
    else:
        monkeypatch.setenv("RANK", "1")
    assert waited(5.0, monkeypatch) == ""
    assert "embedding" in waited(0.1, monkeypatch, is_shown=True)


def test_a_large_file_is_hashed_as_a_small_one_is_and_counted_to_its_end(monkeypatch, tmp_path):
    file = tmp_path / "index.faiss"
    file.write_bytes(bytes(range(256)) * 40)
    at_once = files.file_sha256(file)
    counted = []

    class Bar(progress.tqdm):
        def update(self, n=1):
            counted.append(n)
            return super().update(n)

    monkeypatch.setattr(progress, "tqdm", Bar)
    monkeypatch.setattr(files, "_BYTES_WITHOUT_BAR", 1000)
    monkeypatch.setattr(files, "_BYTES_A_WRITE", 4096)
    assert files.file_sha256(file) == at_once and counted == [4096, 4096, 2048]


WAITS = {
    "generations.embedding": lambda passages, tokenizer, embedder: embed_passages(embedder, passages),
    "models.text_encoding": lambda passages, tokenizer, embedder: embedder.encode(["a"] * 50, tokenizer=tokenizer),
    "data.passages.postings": lambda passages, tokenizer, embedder: build_bm25(passages, tokenizer),
    "data.passages.recurring": lambda passages, tokenizer, embedder: find_recurring_spans(passages, tokenizer),
}


@pytest.mark.parametrize("module", WAITS)
def test_a_bar_counts_to_its_end(module, tiny_passages, tokenizer, embedder, monkeypatch):
    made = []

    class Bar(SimpleNamespace):
        def update(self, count):
            self.done += count

        def close(self):
            self.is_closed = True

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.close()

    def bar(total, doing, unit, is_shown=None):
        made.append(Bar(total=total, done=0, is_shown=is_shown, is_closed=False))
        return made[-1]

    monkeypatch.setattr(f"realm_hf.{module}.progress_bar", bar)
    WAITS[module](tiny_passages, tokenizer, embedder)
    (one,) = made
    assert one.done == one.total > 1 and one.is_closed and one.is_shown is None
