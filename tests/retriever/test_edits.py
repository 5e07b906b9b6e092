import threading

import numpy as np
import pytest
import torch
from datasets import Dataset

from realm_hf import RealmEmbedder, RealmTokenizer
from realm_hf.data.passages.build import passages_from_rows
from realm_hf.generations.embedding import embed_passages
from realm_hf.index.faiss_index import build_index
from realm_hf.index.faiss_search import FaissIndex
from realm_hf.index.file import open_index, save_index
from realm_hf.knowledge import overlay as overlay_module
from realm_hf.knowledge.overlay import EditedIndex
from realm_hf.retriever.edits import EditCounts
from realm_hf.retriever.retriever import RealmRetriever

FACT = "The bridge of Altona was built by Erna Petri. It has nine arches."


@pytest.fixture(scope="module")
def tower(tiny_vocab) -> RealmEmbedder:
    from realm_hf import RealmConfig

    torch.manual_seed(0)
    size = len(tiny_vocab.read_text(encoding="utf-8").splitlines())
    tower = RealmEmbedder(
        RealmConfig(
            vocab_size=size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=96,
            retriever_proj_size=16,
            hidden_act="gelu",
        )
    ).eval()
    # From its own initialisation a tower embeds all texts nearly alike.
    with torch.no_grad():
        tower.realm.embeddings.word_embeddings.weight.normal_(std=1.0)
    return tower


@pytest.fixture(scope="module")
def embeddings(tower, tiny_passages) -> np.ndarray:
    return embed_passages(tower, tiny_passages)


@pytest.fixture
def retriever(tower, tiny_passages, embeddings, tokenizer) -> RealmRetriever:
    return RealmRetriever(tiny_passages, tokenizer, embeddings=embeddings, embedder=tower, generation_name="base")


def embedded(tower, tokenizer, text: str, title: str = "") -> np.ndarray:
    """The passage's own embedding `[1, D]`, the query that finds it best of all."""
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (title, text)]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    row = [cls, *ids[0], sep, *ids[1], sep]
    with torch.inference_mode():
        found = tower(
            torch.tensor([row]), token_type_ids=torch.tensor([[0] * (len(ids[0]) + 2) + [1] * (len(ids[1]) + 1)])
        )
    vector = found.projected_score.numpy()
    return vector / np.linalg.norm(vector)


def queries(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)


# What an edit does


def test_an_added_passage_is_found_and_can_be_read(retriever, tower, tokenizer, tiny_passages):
    query = embedded(tower, tokenizer, FACT, "Altona")
    before = retriever.retrieve(query, 5, null_passage=False)
    assert retriever.add_passages(FACT, "Altona").tolist() == [48]
    batch = retriever.retrieve(query, 5, null_passage=False)
    assert batch.rows[0].tolist() == [48, *before.rows[0, :4].tolist()]
    assert batch.generation == "base+1" and len(retriever) == 49
    assert retriever.texts([48, 3, -1]) == [FACT, tiny_passages.text(3), ""]
    assert retriever.titles([3, 48]) == [tiny_passages.title(3), "Altona"]
    np.testing.assert_allclose(
        batch.scores[0, :1], (retriever.beam_embeddings(batch.rows)[0, 0] @ query[0]), rtol=1e-5
    )


def test_a_replaced_passage_keeps_row_and_title_and_loses_its_old_text(retriever, tower, tokenizer, tiny_passages):
    old = embedded(tower, tokenizer, tiny_passages.text(7), "Place 7")
    assert retriever.retrieve(old, 1, null_passage=False).rows.tolist() == [[7]]
    retriever.replace_passages(7, FACT)
    assert retriever.texts([7]) == [FACT] and retriever.titles([7]) == ["Place 7"]
    new = embedded(tower, tokenizer, FACT, "Place 7")
    batch = retriever.retrieve(new, 48, null_passage=False)
    assert batch.rows[0, 0] == 7 and sorted(batch.rows[0]) == list(range(48))
    retriever.replace_passages([7], ["Again another text."], ["Title"])
    assert retriever.texts([7]) == ["Again another text."] and retriever.titles([7]) == ["Title"]
    assert retriever.edits == EditCounts(replaced=1)


def test_removed_passages_are_never_found_and_stay_readable_by_number(retriever, tiny_passages):
    added = retriever.add_passages([FACT, "Another one."])
    retriever.remove_passages([0, 47, *added[:1].tolist()])
    batch = retriever.retrieve(queries(20), 60, null_passage=False, over_retrieve=0)
    found = set(batch.rows[batch.mask].tolist())
    assert found == {*range(1, 47), 49} and (batch.mask.sum(1) == 47).all()
    assert retriever.texts([0, 48]) == [tiny_passages.text(0), FACT]
    assert len(retriever) == 47 and retriever.live_rows.tolist() == [*range(1, 47), 49]
    assert retriever.edits == EditCounts(added=1, removed=2)
    assert retriever.add_passages("A new number for it.").tolist() == [50]


@pytest.mark.parametrize("seed", range(4))
def test_any_edits_give_what_a_retriever_of_the_edited_passages_gives(
    seed, retriever, tower, tokenizer, tiny_passages, tmp_path
):
    rng = np.random.default_rng(seed)
    rows = {n: (tiny_passages.title(n), tiny_passages.text(n)) for n in range(48)}
    number = 48
    for _ in range(12):
        kind, size = rng.choice(["add", "replace", "remove"]), int(rng.integers(1, 4))
        chosen = rng.choice(sorted(rows), size, replace=False).tolist()
        # Some texts of others in other case: duplicates.
        texts = [
            rows[int(rng.choice(sorted(rows)))][1].upper()
            if rng.random() < 0.4
            else f"Word {rng.integers(999)} is new."
            for _ in range(size)
        ]
        if kind == "add":
            assert retriever.add_passages(texts).tolist() == list(range(number, number + size))
            rows |= {number + n: ("", text) for n, text in enumerate(texts)}
            number += size
        elif kind == "replace":
            retriever.replace_passages(chosen, texts)
            rows |= {row: (rows[row][0], text) for row, text in zip(chosen, texts, strict=True)}
        else:
            retriever.remove_passages(chosen)
            rows = {row: value for row, value in rows.items() if row not in chosen}
    assert retriever.live_rows.tolist() == sorted(rows)
    columns = {"title": [rows[r][0] for r in sorted(rows)], "text": [rows[r][1] for r in sorted(rows)]}
    store = passages_from_rows(Dataset.from_dict(columns), tokenizer, tmp_path / "store", max_length=64)
    fresh = RealmRetriever(store, tokenizer, embeddings=embed_passages(tower, store), embedder=tower)
    sentence = rows[sorted(rows)[0]][1].split(". ")[0]
    tokens = np.array(tokenizer(sentence, add_special_tokens=False)["input_ids"])
    for exclude in (None, [sentence.upper()] * 6, [tokens] * 6):
        for k, over in ((1, 0), (9, 3), (80, 16)):
            asked = queries(6, seed)
            found = retriever.retrieve(asked, k, exclude=exclude, over_retrieve=over)
            expected = fresh.retrieve(asked, k, exclude=exclude, over_retrieve=over)
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
            translated = np.where(expected.rows >= 0, retriever.live_rows[expected.rows.clip(0)], expected.rows)
            np.testing.assert_array_equal(found.rows, translated)
            if over == 16:  # deep enough for all
                np.testing.assert_array_equal(found.excluded, expected.excluded)
    rows_asked = np.sort(rng.choice(sorted(rows), (2, 3), replace=False), axis=1)
    question = [np.array([tokenizer.cls_token_id, 70, tokenizer.sep_token_id])] * 2
    mapped = np.searchsorted(retriever.live_rows, rows_asked)
    read, expected = retriever.reader_batch(question, rows_asked, 64), fresh.reader_batch(question, mapped, 64)
    np.testing.assert_array_equal(read.input_ids, expected.input_ids)
    np.testing.assert_array_equal(read.block_mask, expected.block_mask)
    np.testing.assert_allclose(
        retriever.beam_embeddings(rows_asked), fresh.beam_embeddings(mapped), rtol=1e-4, atol=1e-5
    )
    assert retriever.recall_against_exact(queries(8), 10) == 1.0


@pytest.mark.parametrize(
    "factory", ["HNSW8", "IVF4,Flat", "SQ8", "PQ4x4", "IVF4,PQ4x4", "PCA8,IVF4,SQ8", "PQ4x4,RFlat"]
)
def test_every_family_of_indexes_finds_new_passages_and_no_dead_ones(
    factory, tower, tiny_passages, embeddings, tokenizer, tmp_path
):
    save_index(
        build_index(embeddings, factory, search_parameters="nprobe=4" if "IVF" in factory else None), tmp_path / "i"
    )
    retriever = RealmRetriever(
        tiny_passages, tokenizer, index=open_index(tmp_path / "i"), embeddings=embeddings, embedder=tower
    )
    retriever.add_passages(FACT, "Altona")
    retriever.replace_passages(list(range(20)), [f"Village {n} has a mill." for n in range(20)])
    retriever.remove_passages(list(range(10, 30)))
    rows = retriever.retrieve(queries(30), 29, null_passage=False, over_retrieve=0).rows
    assert not set(rows.reshape(-1)) & set(range(10, 30))
    for text, title, row in ((FACT, "Altona", 48), ("Village 4 has a mill.", "Place 4", 4)):
        scores = retriever.retrieve(embedded(tower, tokenizer, text, title), 29, null_passage=False)
        exact = retriever.beam_embeddings(np.array([[row]]))[0, 0] @ embedded(tower, tokenizer, text, title)[0]
        assert scores.scores[0][scores.rows[0] == row] == pytest.approx(exact, rel=1e-4)
    retriever.save_pretrained(tmp_path / "saved")
    saved = RealmRetriever.from_pretrained(tmp_path / "saved")
    assert type(saved.index.faiss) is type(open_index(tmp_path / "i")) and len(saved.index) == 29
    found = saved.retrieve(queries(5), 10, null_passage=False)
    assert found.rows.max() < 29 and len(saved) == 29


def test_many_dead_rows_in_front_are_searched_past(retriever, embeddings, monkeypatch):
    query = embeddings[:1] / np.linalg.norm(embeddings[0])
    ranking = retriever.retrieve(query, 48, null_passage=False).rows[0]
    depths = []
    rank = EditedIndex.rank
    monkeypatch.setattr(EditedIndex, "rank", lambda i, q, depth: depths.append(depth) or rank(i, q, depth))
    monkeypatch.setattr(overlay_module, "_SLACK", 1)
    retriever.remove_passages(ranking[:40])
    batch = retriever.retrieve(query, 3, null_passage=False, over_retrieve=0)
    assert batch.rows[0].tolist() == ranking[40:43].tolist()
    assert depths == [3]  # the filter above sees live rows only


def test_an_edit_costs_what_it_edits(retriever, tower, monkeypatch):
    forwarded = []
    forward = tower.forward
    monkeypatch.setattr(
        tower, "forward", lambda input_ids, **inputs: forwarded.append(len(input_ids)) or forward(input_ids, **inputs)
    )
    retriever.add_passages([FACT, "Two."])
    assert sum(forwarded) == 2 + 4  # four of the base are embedded again at the first edit, to know the tower
    forwarded.clear()
    retriever.replace_passages(5, "Three.")
    retriever.remove_passages(6)
    assert sum(forwarded) == 1


def test_texts_of_other_case_are_one_group_with_the_bases(retriever, tower, tokenizer, tiny_passages):
    text = tiny_passages.text(9)
    retriever.add_passages([text.upper(), text.lower() + "!"], [tiny_passages.title(9)] * 2)
    query = embedded(tower, tokenizer, text, "Place 9")
    batch = retriever.retrieve(query, 4, null_passage=False)
    assert len({9, 48, 49} & set(batch.rows[0].tolist())) == 1 and batch.duplicates.tolist() == [2]
    retriever.remove_passages(9)
    batch = retriever.retrieve(query, 4, null_passage=False)
    assert len({48, 49} & set(batch.rows[0].tolist())) == 1 and 9 not in batch.rows


def test_a_sentence_of_a_new_passage_excludes_it(retriever, tower, tokenizer):
    row = retriever.add_passages(FACT)[0]
    query = embedded(tower, tokenizer, FACT)
    tokens = np.array(tokenizer("It has nine arches.", add_special_tokens=False)["input_ids"])
    for sentence in ("it  has NINE arches.", tokens):
        batch = retriever.retrieve(query, 3, exclude=[sentence])
        assert row not in batch.rows and batch.excluded.tolist() == [1]
    retriever.replace_passages(row, "The bridge fell down.")
    assert (
        retriever.retrieve(embedded(tower, tokenizer, "The bridge fell down."), 3, exclude=[tokens]).rows[0, 1] == row
    )


# Saving


def test_a_saved_copy_equals_a_retriever_of_the_edited_passages(retriever, tower, tokenizer, tiny_passages, tmp_path):
    retriever.replace_passages(3, FACT, "Altona")
    retriever.remove_passages([0, 20])
    retriever.add_passages("The lake is deep.", "Lake")
    retriever.save_pretrained(tmp_path / "saved")
    saved = RealmRetriever.from_pretrained(tmp_path / "saved", verify="sha256")
    kept = [n for n in range(48) if n not in (0, 20)]
    rows = {
        "title": [*("Altona" if n == 3 else tiny_passages.title(n) for n in kept), "Lake"],
        "text": [*(FACT if n == 3 else tiny_passages.text(n) for n in kept), "The lake is deep."],
    }
    store = passages_from_rows(Dataset.from_dict(rows), tokenizer, tmp_path / "store", max_length=64)
    assert saved.passages.fingerprint == store.fingerprint and saved.edits == EditCounts()
    np.testing.assert_allclose(saved.embeddings, embed_passages(tower, store), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(saved.embeddings, np.asarray(retriever.embeddings)[retriever.live_rows])
    assert saved.generation_name == "base+3"
    live, copied = (r.retrieve(queries(9), 10, null_passage=False) for r in (retriever, saved))
    np.testing.assert_array_equal(live.rows, retriever.live_rows[copied.rows])


def test_a_saved_copy_can_be_edited_again_with_its_own_tower(retriever, tower, tokenizer, tmp_path):
    retriever.add_passages(FACT, "Altona")
    retriever.save_pretrained(tmp_path)
    saved = RealmRetriever.from_pretrained(tmp_path)
    copied = saved.snapshot()
    assert copied.embedder is saved.embedder  # loaded once for all
    assert saved.add_passages("The lake is deep.").tolist() == [49]
    assert saved.retrieve(embedded(tower, tokenizer, "The lake is deep."), 1, null_passage=False).rows[0, 0] == 49
    np.testing.assert_allclose(saved.null_embedding(), retriever.null_embedding(), rtol=1e-4, atol=1e-5)
    saved.save_pretrained(tmp_path)  # in its own place: its passages, arrays and tower are mapped from there
    assert saved.texts([48, 49, 2]) == [FACT, "The lake is deep.", retriever.texts([2])[0]]
    again = RealmRetriever.from_pretrained(tmp_path, verify="sha256")
    assert len(again) == 50 and again.generation_name == "base+1+1"
    assert again.texts([49]) == ["The lake is deep."] and not list(tmp_path.glob("*.new"))


def test_a_retriever_without_a_tower_leaves_none_behind(retriever, tmp_path):
    retriever.save_pretrained(tmp_path)
    assert (tmp_path / "embedder" / "model.safetensors").is_file()
    retriever.embedder = None
    retriever.save_pretrained(tmp_path)
    assert not (tmp_path / "embedder").exists()
    assert RealmRetriever.from_pretrained(tmp_path).embedder is None


def test_float16_embeddings_stay_float16_and_score_alike(tower, tiny_passages, embeddings, tokenizer, tmp_path):
    retriever = RealmRetriever(tiny_passages, tokenizer, embeddings=embeddings.astype(np.float16), embedder=tower)
    retriever.add_passages(FACT)
    retriever.save_pretrained(tmp_path)
    saved = RealmRetriever.from_pretrained(tmp_path)
    assert saved.embeddings.dtype == np.float16
    live, copied = (r.retrieve(queries(9), 10) for r in (retriever, saved))
    np.testing.assert_array_equal(live.rows, copied.rows)
    np.testing.assert_allclose(live.scores, copied.scores, rtol=1e-5)


def test_the_base_is_not_touched(retriever, tiny_passages, embeddings):
    files = {path: path.read_bytes() for path in tiny_passages.directory.rglob("*") if path.is_file()}
    kept, index = embeddings.copy(), retriever.index
    retriever.add_passages(FACT)
    retriever.replace_passages(1, FACT)
    retriever.remove_passages(2)
    assert all(path.read_bytes() == content for path, content in files.items())
    np.testing.assert_array_equal(embeddings, kept)
    assert len(index) == 48 and retriever.passages is tiny_passages


# Passages that came as a dataset


def test_a_dataset_can_be_edited_and_saved(tower, tiny_passages, embeddings, tokenizer, tmp_path):
    rows = tiny_passages.rows.select_columns(["title", "text"]).add_column("year", list(range(48)))
    rows = rows.add_column("embeddings", embeddings.tolist())
    retriever = RealmRetriever(rows, tokenizer, embedder=tower)
    retriever.replace_passages(3, FACT, "Altona")
    retriever.remove_passages([0, 1])
    retriever.add_passages("The lake is deep.", "Lake")
    query = embedded(tower, tokenizer, FACT, "Altona")
    assert retriever.retrieve(query, 2, exclude=["nine arches"]).rows[0, 1] != 3
    assert retriever.retrieve(query, 2).rows[0, 1] == 3
    read = retriever.reader_batch([np.array([1, 2, 3])], np.array([[3, 48, 5, -1, -2]]), 64)
    assert tokenizer.decode(read.input_ids[1][read.block_mask[1]]) == "the lake is deep."
    assert tokenizer.decode(read.input_ids[2][read.block_mask[2]]) == rows[5]["text"].lower()
    retriever.save_pretrained(tmp_path)
    saved = RealmRetriever.from_pretrained(tmp_path)
    assert saved.texts(range(47)) == retriever.texts(retriever.live_rows)
    assert saved.titles([1, 46]) == ["Altona", "Lake"]
    assert saved.passages["year"][:3] == [2, None, 4] and saved.passages["year"][-1] is None
    assert saved.retrieve(query, 2).rows[0, 1] == 1
    retriever = RealmRetriever(rows, tokenizer, embedder=tower)
    retriever.remove_passages(0)
    retriever.save_pretrained(tmp_path)
    assert RealmRetriever.from_pretrained(tmp_path).passages["year"][:2] == [1, 2]


def test_titles_need_a_column(tower, tiny_passages, tokenizer):
    from realm_hf.data.passages.in_memory import pack_passages

    texts = [tiny_passages.text(n) for n in range(6)]
    vectors = embed_passages(tower, pack_passages(texts, [""] * 6, tokenizer, 96))
    retriever = RealmRetriever(Dataset.from_dict({"text": texts}), tokenizer, embeddings=vectors, embedder=tower)
    with pytest.raises(ValueError, match="no column `title`"):
        retriever.add_passages(FACT, "Altona")
    assert retriever.add_passages(FACT).tolist() == [6] and retriever.titles([6, 0]) == ["", ""]


# Threads


def test_a_search_ends_on_what_it_began_with(retriever, tower, tokenizer, monkeypatch):
    inside, edited = threading.Event(), threading.Event()
    search = FaissIndex.search

    def slow(*args, **options):
        inside.set()
        assert edited.wait(30)
        return search(*args, **options)

    query = embedded(tower, tokenizer, FACT)
    expected = retriever.retrieve(query, 48)
    monkeypatch.setattr(FaissIndex, "search", slow)
    found = []
    thread = threading.Thread(target=lambda: found.append(retriever.retrieve(query, 48)))
    thread.start()
    assert inside.wait(30)
    retriever.add_passages(FACT)
    retriever.remove_passages(expected.rows[0, 1:4])
    edited.set()
    thread.join()
    np.testing.assert_array_equal(found[0].rows, expected.rows)
    assert found[0].generation == "base" and retriever.retrieve(query, 48).rows[0, 1] == 48


def test_edits_and_searches_in_many_threads_agree(retriever, tower, tokenizer):
    failures, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            try:
                batch = retriever.retrieve(queries(2), 50, null_passage=False)
                retriever.texts(batch.rows[batch.mask])
                assert len(set(batch.rows[0][batch.mask[0]])) == batch.mask[0].sum()
            except Exception as error:  # noqa: BLE001
                failures.append(error)

    def edit(worker):
        try:
            for number in range(5):
                row = retriever.add_passages(f"Worker {worker} wrote text {number}.")
                retriever.replace_passages(row, f"Worker {worker} wrote text {number} twice.")
                if number % 2:
                    retriever.remove_passages(row)
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    asking = [threading.Thread(target=ask) for _ in range(2)]
    editing = [threading.Thread(target=edit, args=(worker,)) for worker in range(3)]
    for thread in (*asking, *editing):
        thread.start()
    for thread in editing:
        thread.join()
    stop.set()
    for thread in asking:
        thread.join()
    assert not failures
    assert retriever.edits == EditCounts(added=9) and retriever._corpus.overlay.row_count == 63
    texts = retriever.texts(retriever.live_rows[48:])
    assert sorted(texts) == sorted(f"Worker {w} wrote text {n} twice." for w in range(3) for n in (0, 2, 4))


def test_a_snapshot_is_not_reached_by_later_edits(retriever):
    retriever.add_passages(FACT)
    snapshot = retriever.snapshot()
    retriever.replace_passages(48, "Another fact.")
    retriever.remove_passages(3)
    assert snapshot.texts([48]) == [FACT] and len(snapshot) == 49 and len(retriever) == 48
    assert 3 in snapshot.retrieve(queries(1), 49, null_passage=False).rows


def test_an_answer_rests_on_the_knowledge_of_one_moment(retriever, tower, tokenizer, monkeypatch):
    from realm_hf import RealmForOpenQA
    from realm_hf.qa.answerer import QuestionAnswerer

    torch.manual_seed(0)
    answerer = QuestionAnswerer(RealmForOpenQA(tower.config).eval(), retriever)
    answerer.model.embedder = tower
    before = answerer("Which island lies in the north?", top_k=48)[0]
    beam = QuestionAnswerer._beam

    def edited_meanwhile(*args):
        retriever.replace_passages(range(40), [f"Nothing is left of {row}." for row in range(40)])
        return beam(*args)

    monkeypatch.setattr(QuestionAnswerer, "_beam", edited_meanwhile)
    answer = answerer("Which island lies in the north?", top_k=48)[0]
    assert answer == before
    monkeypatch.undo()
    assert answerer("Which island lies in the north?", top_k=48)[0] != before


# What is refused, in words


def test_what_cannot_be_edited_is_said(retriever, tiny_passages, embeddings, tokenizer, tower):
    with pytest.raises(IndexError, match=r"row 48 is out of range: rows are 0 to 47"):
        retriever.replace_passages(48, FACT)
    with pytest.raises(IndexError, match=r"row -1 is the null passage"):
        retriever.remove_passages(-1)
    with pytest.raises(ValueError, match=r"comes twice in \[3, 3\]"):
        retriever.remove_passages([3, 3])
    with pytest.raises(ValueError, match=r"2 texts for 1 rows"):
        retriever.replace_passages(3, [FACT, FACT])
    with pytest.raises(ValueError, match=r"1 titles for 2 texts"):
        retriever.add_passages([FACT, FACT], "One")
    with pytest.raises(ValueError, match=r"Text 0 \(' '\) holds nothing to read"):
        retriever.replace_passages(3, " ")
    with pytest.raises(ValueError, match=r"Rows are 'three'"):
        retriever.remove_passages("three")
    with pytest.raises(ValueError, match=r"All passages would be removed"):
        retriever.remove_passages(range(48))
    retriever.remove_passages(3)
    for call in (lambda: retriever.remove_passages(3), lambda: retriever.replace_passages(3, FACT)):
        with pytest.raises(IndexError, match=r"row 3 was removed"):
            call()
    assert retriever.edits == EditCounts(removed=1)
    assert not len(retriever.add_passages([])) and retriever.edits == EditCounts(removed=1)
    with pytest.raises(ValueError, match="no index yet"):
        RealmRetriever(tiny_passages, tokenizer, embedder=tower).add_passages(FACT)


def test_the_tower_and_the_tokenizer_must_be_those_of_the_index(
    tiny_passages, embeddings, tokenizer, tower, tiny_vocab, tmp_path
):
    import copy

    with pytest.raises(ValueError, match=r"has none: set `retriever.embedder`"):
        RealmRetriever(tiny_passages, tokenizer, embeddings=embeddings).add_passages(FACT)
    with pytest.raises(ValueError, match=r"set `retriever.tokenizer`"):
        RealmRetriever(tiny_passages, embeddings=embeddings, embedder=tower).add_passages(FACT)
    tuned = copy.deepcopy(tower)
    with torch.no_grad():
        tuned.cls.dense.weight.add_(0.3 * tuned.cls.dense.weight.std() * torch.randn_like(tuned.cls.dense.weight))
    with pytest.raises(ValueError, match="not the one that made the index"):
        RealmRetriever(tiny_passages, tokenizer, embeddings=embeddings, embedder=tuned).add_passages(FACT)
    cased = RealmTokenizer(vocab=str(tiny_vocab), do_lower_case=False)
    with pytest.raises(ValueError, match="not the one that made the passages"):
        RealmRetriever(tiny_passages, cased, embeddings=embeddings, embedder=tower).add_passages(FACT)
    narrow = RealmRetriever(tiny_passages, tokenizer, embeddings=embeddings[:, :8].copy(), embedder=tower)
    with pytest.raises(ValueError, match="gives 16 dimensions, the index has 8"):
        narrow.add_passages(FACT)


def test_what_knows_nothing_of_edits_is_refused(retriever, tiny_passages, embeddings, tokenizer, tower, tmp_path):
    retriever.remove_passages(0)
    with pytest.raises(ValueError, match="`datasets` would search it as it was"):
        _ = retriever.dataset
    with pytest.raises(ValueError, match="load the copy and publish that"):
        retriever.files()
    bare = RealmRetriever(tiny_passages, tokenizer, index=build_index(embeddings), embedder=tower)
    bare.add_passages(FACT)
    assert bare.retrieve(queries(2), 5).mask.all()
    with pytest.raises(ValueError, match="made without them: pass `embeddings`"):
        bare.save_pretrained(tmp_path)


def test_a_generation_is_not_swapped_under_edits(retriever, tiny_passages, embeddings, tmp_path):
    from realm_hf.generations.store import GenerationStore

    generation = GenerationStore(tmp_path).write(
        embeddings,
        build_index(embeddings),
        snapshot_step=1,
        passages_fingerprint=tiny_passages.fingerprint,
        tokenizer_fingerprint=tiny_passages.tokenizer_fingerprint,
        embedder_fingerprint="e",
        factory="Flat",
    )
    retriever.swap(generation, retriever.embedder)
    retriever.add_passages(FACT)
    with pytest.raises(ValueError, match="knows nothing of the edits made here"):
        retriever.swap(generation)
    assert retriever.generation_name == f"{generation.name}+1"
