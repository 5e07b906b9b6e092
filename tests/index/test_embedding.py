import numpy as np
import pytest
import torch

from realm_hf.generations.embedding import embed_passages, shard


def one_by_one(embedder, passages, row):
    inputs = {name: torch.from_numpy(array) for name, array in passages.pad_candidates(np.array([row])).items()}
    with torch.no_grad():
        return embedder.eval()(**inputs).projected_score[0].numpy()


def test_every_row_equals_its_passage_embedded_alone(embedder, passages):
    embeddings = embed_passages(embedder, passages)
    assert embeddings.shape == (40, 16) and embeddings.dtype == np.float32
    for row in range(len(passages)):
        np.testing.assert_allclose(embeddings[row], one_by_one(embedder, passages, row), atol=1e-5)


def test_rows_and_batch_size_do_not_change_the_embeddings(embedder, passages):
    whole = embed_passages(embedder, passages)
    some = np.array([33, 2, 6, 11])
    np.testing.assert_allclose(embed_passages(embedder, passages, rows=some), whole[some], atol=1e-5)
    tiny_batches = embed_passages(embedder, passages, max_tokens_per_batch=20)
    np.testing.assert_allclose(tiny_batches, whole, atol=1e-5)


@pytest.mark.parametrize("world", [1, 2, 3, 7, 41])
def test_shards_of_all_ranks_together_are_the_whole(embedder, passages, world):
    out = np.full((len(passages), 16), np.nan, np.float32)
    sizes = []
    for rank in range(world):
        rows = shard(len(passages), rank, world)
        sizes.append(rows.stop - rows.start)
        embed_passages(embedder, passages, out, rows=rows)
    assert sum(sizes) == len(passages) and max(sizes) - min(sizes) <= 1
    np.testing.assert_allclose(out, embed_passages(embedder, passages), atol=1e-5)


def test_a_rank_that_is_none_of_the_world_is_refused():
    with pytest.raises(ValueError, match="Rank 2 is not one of 2 ranks"):
        shard(10, 2, 2)


def test_float16_output_is_the_rounded_float32_one(embedder, passages, tmp_path):
    out = np.lib.format.open_memmap(tmp_path / "e.npy", mode="w+", dtype=np.float16, shape=(len(passages), 16))
    embed_passages(embedder, passages, out)
    np.testing.assert_array_equal(out, embed_passages(embedder, passages).astype(np.float16))


def test_dropout_is_off_and_the_training_mode_comes_back(tiny_config, passages):
    from realm_hf import RealmEmbedder

    tiny_config.hidden_dropout_prob = 0.5
    embedder = RealmEmbedder(tiny_config).train()
    np.testing.assert_array_equal(embed_passages(embedder, passages), embed_passages(embedder, passages))
    assert embedder.training


def test_progress_counts_to_the_end(embedder, passages):
    seen = []
    embed_passages(
        embedder, passages, rows=slice(5, 30), max_tokens_per_batch=60, progress=lambda *args: seen.append(args)
    )
    done = [count for count, _ in seen]
    assert len(seen) > 2 and done == sorted(done) and seen[-1] == (25, 25)


def test_nan_is_an_error_that_names_the_passage_row(embedder, passages):
    # A word that only row 1 has ("nicaragua") gets a broken embedding.
    only_there = set(passages.body_ids(1).tolist()) - {
        token for row in range(len(passages)) if row != 1 for token in passages.body_ids(row).tolist()
    }
    with torch.no_grad():
        embedder.get_input_embeddings().weight[only_there.pop()] = torch.nan
    with pytest.raises(ValueError, match="embedding of passage row 1 holds NaN"):
        embed_passages(embedder, passages)


def test_an_output_of_the_wrong_shape_is_refused(embedder, passages):
    with pytest.raises(ValueError, match=r"out has shape \[40, 8\], but 40 passages of dimension 16"):
        embed_passages(embedder, passages, np.empty((40, 8), np.float32))


def test_passages_longer_than_the_positions_are_refused(tiny_config, passages):
    from realm_hf import RealmEmbedder

    tiny_config.max_position_embeddings = 50
    with pytest.raises(ValueError, match="95 wordpieces, the embedder 50 positions"):
        embed_passages(RealmEmbedder(tiny_config), passages)
