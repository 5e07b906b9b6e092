"""Held-out figures equal what one counts by hand."""

import numpy as np
import pytest
import torch
from tiny_worlds import load_world, tiny_model, tiny_tokenizer

from realm_hf.index.faiss_index import build_index
from realm_hf.models.modeling_outputs import RealmForPreTrainingOutput
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.training.evaluation import batch_sums, means, retrieval_recall
from realm_hf.training.prefetch import encode_queries
from realm_hf.training.swap_probes import overlap


@pytest.fixture(scope="module")
def ranked(world):
    """A retriever whose ranking is set by hand: for question q the passages come in the order of `order[q]`."""
    passages, _ = load_world(world)
    embedder = tiny_model(retriever_proj_size=16).embedder.eval()
    tokenizer = tiny_tokenizer()
    questions = ["Who sells oil?", "Who sells much rice to others?"]
    queries = encode_queries(embedder, [np.array(i) for i in tokenizer(questions)["input_ids"]])
    # Embeddings that score exactly like -rank for both questions: solved by least squares in 16 dimensions.
    order = np.array([[3, 1, 4, 0, 2], [0, 1, 2, 3, 4]])
    scores = np.full((2, len(passages)), -100.0)
    for question in range(2):
        scores[question, order[question]] = -np.arange(5.0)
    embeddings = np.linalg.lstsq(queries.astype(np.float64), scores, rcond=None)[0].T.astype(np.float32)
    retriever = RealmRetriever(passages, index=build_index(embeddings), embeddings=embeddings)
    return embedder, tokenizer, retriever, questions


def test_recall_counts_questions_whose_passage_is_among_the_first(ranked):
    assert retrieval_recall(*ranked, [4, 1], (1, 2, 3)) == {1: 0.0, 2: 0.5, 3: 1.0}


def test_any_of_several_right_passages_counts(ranked):
    assert retrieval_recall(*ranked, [[50, 3], {2, 0}], (1, 5)) == {1: 1.0, 5: 1.0}


def test_a_passage_that_is_never_found_counts_nowhere(ranked):
    assert retrieval_recall(*ranked, [40, 41], (1, 5)) == {1: 0.0, 5: 0.0}


def test_questions_without_answers_are_refused(ranked):
    embedder, tokenizer, retriever, questions = ranked
    with pytest.raises(ValueError, match="2 questions and 1 gold rows"):
        retrieval_recall(embedder, tokenizer, retriever, questions, [1])
    with pytest.raises(ValueError, match="0 questions"):
        retrieval_recall(embedder, tokenizer, retriever, [], [])


def test_sums_leave_out_examples_without_label_and_absent_candidates():
    half = float(np.log(0.5))
    output = RealmForPreTrainingOutput(
        loss=torch.tensor(3.0),
        candidate_log_probs=torch.tensor([[half, half, -torch.inf], [0.0, -torch.inf, -torch.inf]]),
        marginal_utility=torch.tensor([2.0, 0.0]),
        null_mass=torch.tensor([0.5, 1.0]),
    )
    sums = batch_sums(output, torch.tensor([[5, 6], [-100, -100]]))
    assert sums.tolist() == pytest.approx([3.0, 2.0, 0.5, np.log(2), 1.0, 2.0], abs=1e-6)
    assert means((2 * sums).tolist(), "eval_") == pytest.approx(
        {"eval_loss": 6.0, "eval_retrieval_utility": 2.0, "eval_null_mass": 0.5, "eval_entropy": np.log(2)}, abs=1e-6
    )


def test_overlap_is_the_mean_share_of_passages_found_again():
    first = np.array([[1, 2, -2], [3, 4, 5], [-2, -2, -2]])
    second = np.array([[2, 9, -2], [5, 4, 3], [1, 2, 3]])
    assert overlap(first, second) == pytest.approx((0.5 + 1.0 + 1.0) / 3)
