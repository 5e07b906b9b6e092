"""`realm-hf prepare`: several processes share the corpora of `pretrain`, which finds them then."""

import json
import os
import sys

import pytest
from tiny_bert import tiny_bert

from realm_hf.cli import arguments, corpora, prepare, pretrain
from realm_hf.cli.main import main
from realm_hf.data import PassageStore, SentenceStore
from realm_hf.data import ranges as module
from realm_hf.refresh.base import RefreshError

DOCUMENTS = 40


@pytest.fixture
def words(tmp_path) -> list[str]:
    rows = [{"title": f"Town {n}", "text": f"The town of Paris number {n} lies in Egypt."} for n in range(DOCUMENTS)]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--knowledge_corpus", tmp_path / "documents.jsonl", "--model_name_or_path", tiny_bert(tmp_path / "bert")]
    return [*map(str, [*given, "--output_dir", tmp_path / "run"]), "--max_candidate_length", "64", "--use_cpu", "true"]


@pytest.mark.multiprocess
def test_two_that_were_started_alike_make_one_run_and_training_finds_it(words, tmp_path, monkeypatch, capfd):
    """As two tasks of a job array are; one reads what `datasets` has converted, as the other does."""
    monkeypatch.setattr(module, "RANGE_DOCUMENTS", 8)
    pids = []
    for _ in range(2):
        pids.append(os.fork())
        if pids[-1] == 0:
            try:
                code = main(["prepare", *words])
                sys.stdout.flush()
            except BaseException as error:  # noqa: BLE001 - told by the exit code
                sys.stderr.write(repr(error))
                code = 1
            os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0, 0], capfd.readouterr().err
    run = tmp_path / "run"
    passages = PassageStore.load(run / "passages", verify=True)
    assert len(passages) == DOCUMENTS and SentenceStore.load(run / "sentences", verify=True).statistics["kept"]
    assert sorted(path.name for path in run.iterdir()) == [
        *("passages", "passages-settings.json", "sentences", "sentences-settings.json")
    ]
    # `pretrain` takes them as they are, streaming or not.
    monkeypatch.setattr(module, "build_in_ranges", lambda *_, **__: pytest.fail("built again"))
    given = programs_arguments("pretrain", *words, "--streaming", "true", "--num_proc", "2")
    knowledge, corpus, _, model_args, _, args = given
    tokenizer = corpora.load_tokenizer(model_args)
    found = corpora.prepare_passages(knowledge, tokenizer, run / "passages", args.max_candidate_length)
    pretrain.prepare_sentences(knowledge, corpus, args, tokenizer, run / "sentences")
    assert found.fingerprint == passages.fingerprint


def programs_arguments(name: str, *words: str):
    from realm_hf.training.command_line import parse_arguments

    return parse_arguments(arguments.ARGUMENTS[name], list(words))


def test_what_cannot_be_used_is_said_in_one_line_by_whatever_engine(words, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"^realm-hf prepare: there is no tagger|^realm-hf prepare: .*nonsense"):
        main(["prepare", *words, "--tagger", "nonsense"])
    monkeypatch.setattr(prepare, "run_on_ray", lambda work, workers, cpus: [work() for _ in range(workers)])
    with pytest.raises(SystemExit, match=r"^realm-hf prepare: .*no column 'body'"):
        main(["prepare", *words, "--engine", "ray", "--workers", "2", "--text_column", "body"])


class Nodes:
    """Ranks of two nodes, of which this process is one; it meets nobody."""

    def __init__(self, failure: Exception | None = None):
        self.world_size, self.failure, self.together_on = 4, failure, []

    def on_main(self, function, what):
        raise AssertionError("only rank 0 would work")

    def together(self, what, work):
        self.together_on.append(what)
        if self.failure is not None:
            raise self.failure
        return work()

    def broadcast(self, text):
        return text


@pytest.mark.parametrize(("local_rank", "builds"), [("0", True), ("1", False)])
def test_on_several_nodes_the_first_process_of_each_prepares(local_rank, builds, tmp_path, monkeypatch):
    ranks, built = Nodes(), []
    monkeypatch.setattr(corpora.RankGroup, "of_all_ranks", lambda **_: ranks)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    folder = tmp_path / "passages"
    corpora.once(folder, {}, lambda: built.append(folder.mkdir()), shared=True)
    assert len(built) == builds and ranks.together_on == [f"prepare {folder}"]
    ranks.failure = RefreshError("node 2 does not see the documents")
    with pytest.raises(RefreshError):
        corpora.once(folder, {}, folder.mkdir, shared=True)


def test_a_corpus_that_others_finished_meanwhile_is_taken(tmp_path):
    folder = tmp_path / "passages"

    def late():
        folder.mkdir()
        raise FileExistsError(folder)

    corpora.once(folder, {}, late)

    def fails():
        raise FileExistsError("another file")

    with pytest.raises(FileExistsError):
        corpora.once(tmp_path / "sentences", {}, fails)
