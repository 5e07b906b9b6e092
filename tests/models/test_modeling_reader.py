"""The reader: which spans it scores and how, batches, labels, what it does not compute, files."""

import pytest
import torch
import torch.nn.functional as F
from promises import same_scores

from realm_hf import RealmConfig, RealmReader
from realm_hf.models.losses import span_log_softmax
from realm_hf.models.modeling_outputs import SpanScores
from realm_hf.models.reading import ReadBeam

LENGTH = 24


@pytest.fixture
def reader(tiny_config) -> RealmReader:
    tiny_config.max_span_width, tiny_config.span_hidden_size, tiny_config.initializer_range = 4, 12, 0.3
    torch.manual_seed(0)
    return RealmReader(tiny_config).eval()


def joint_inputs(rows: int, seed: int = 0, length: int = LENGTH) -> dict[str, torch.Tensor]:
    """`[CLS] question [SEP] body [SEP]` with questions and bodies of random lengths."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(3, 8, (rows, 1), generator=generator)
    end = first + torch.randint(1, length - 8, (rows, 1), generator=generator)
    position = torch.arange(length)
    mask = position <= end
    return {
        "input_ids": torch.randint(5, 2000, (rows, length), generator=generator) * mask,
        "attention_mask": mask.long(),
        "token_type_ids": ((position >= first) & mask).long(),
        "block_mask": (position >= first) & (position < end),
    }


def spans_by_loops(block_mask: torch.Tensor, widest: int) -> list[tuple[int, int, int]]:
    length = block_mask.size(1)
    return [
        (row, start, start + width)
        for row in range(len(block_mask))
        for start in range(length)
        for width in range(widest)
        if start + width < length and block_mask[row, start] and block_mask[row, start + width]
    ]


def scores_by_hand(reader: RealmReader, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """w . LayerNorm(relu(A h_start + B h_end)) + b, span by span, from the padded tower."""
    given = {name: value for name, value in inputs.items() if name != "block_mask"}
    hidden = reader.realm(**given, return_dict=True).last_hidden_state
    head, size = reader.qa_outputs, reader.config.span_hidden_size
    weight, bias = head.dense_intermediate.weight, head.dense_intermediate.bias
    scores = []
    for row, start, end in spans_by_loops(inputs["block_mask"], reader.config.max_span_width):
        summed = F.linear(hidden[row, start], weight[:size], bias[:size])
        summed = (summed + F.linear(hidden[row, end], weight[size:], bias[size:])).relu()
        scores.append(head.dense_output(head.layer_normalization(summed)).squeeze())
    return scores


def test_all_spans_of_the_passages_and_no_others_are_scored_in_order(reader):
    inputs = joint_inputs(7)
    inputs["block_mask"][2] = False
    inputs["block_mask"][4] = inputs["block_mask"][4] & (torch.arange(LENGTH) != 9)
    inputs["block_mask"][5, -1] = True
    spans = reader.score_spans(**inputs)
    found = torch.stack([spans.pair, spans.start, spans.end], dim=-1).tolist()
    assert [tuple(span) for span in found] == spans_by_loops(inputs["block_mask"], 4)
    assert {pair for pair, *_ in found} == {0, 1, 3, 4, 5, 6}


def test_a_span_is_scored_from_its_first_and_last_hidden_state(reader):
    inputs = joint_inputs(4)
    inputs["block_mask"][1, 8] = False
    expected = torch.stack(scores_by_hand(reader, inputs))
    torch.testing.assert_close(reader.score_spans(**inputs).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("max_tokens", [1, 60])
def test_chunks_change_neither_logits_nor_gradients(reader, max_tokens):
    inputs = joint_inputs(9)
    results = []
    for size in (max_tokens, 10_000):
        reader.zero_grad()
        logits = reader.score_spans(**inputs, max_tokens_per_chunk=size).logits
        (logits * torch.linspace(-1, 1, len(logits))).sum().backward()
        results.append((logits, [p.grad.clone() for p in reader.parameters() if p.requires_grad]))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=0)


def test_more_padding_changes_nothing(reader):
    inputs = joint_inputs(5)
    wider = {name: F.pad(value, (0, 11)) for name, value in inputs.items()}
    narrow, wide = reader.score_spans(**inputs), reader.score_spans(**wider)
    torch.testing.assert_close(narrow.logits, wide.logits, atol=1e-5, rtol=0)
    assert torch.equal(narrow.end, wide.end)


def test_padding_empty_passages_and_the_pooler_cost_nothing(reader):
    inputs = joint_inputs(6)
    inputs["block_mask"][3] = False
    tokens, poolings, scored = [], [], []
    reader.realm.embeddings.register_forward_hook(lambda *call: tokens.append(call[-1].shape[:2].numel()))
    reader.realm.pooler.dense.register_forward_hook(lambda *_: poolings.append(1))
    score = reader.qa_outputs._score
    reader.qa_outputs._score = lambda hidden: (scored.append(len(hidden)), score(hidden))[1]
    spans = reader.score_spans(**inputs, max_tokens_per_chunk=1)
    lengths = inputs["attention_mask"].sum(-1)
    assert sum(tokens) == int(lengths.sum() - lengths[3])
    assert not poolings
    # Invalid ones are those that reach from a passage into the next: at most 0 + 1 + 2 + 3 a passage.
    assert len(spans.logits) <= sum(scored) <= len(spans.logits) + 6 * 5


def test_rows_without_any_passage_give_no_spans_and_a_loss_that_can_be_differentiated(reader):
    inputs = joint_inputs(2)
    inputs["block_mask"] = torch.zeros_like(inputs["block_mask"])
    spans = reader.score_spans(**inputs)
    assert [len(value) for value in (spans.logits, spans.pair, spans.start, spans.end)] == [0, 0, 0, 0]
    outputs = reader(**inputs, relevance_score=torch.zeros(2), **labels(torch.full((2, 1), 4)))
    outputs.loss.backward()
    found = [outputs[name].item() for name in ("loss", "block_idx", "candidate", "start_pos", "end_pos")]
    assert found == [0.0, 0, 0, 0, 0]


def labels(starts: torch.Tensor, ends: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    ends = starts if ends is None else ends
    return {"start_positions": starts, "end_positions": ends, "has_answers": (starts >= 0).any(-1)}


def batch_of_questions(questions: int = 3, beam: int = 5, read: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = {name: value.view(questions, beam, -1) for name, value in joint_inputs(questions * beam).items()}
    start = torch.where(inputs["block_mask"].any(-1), inputs["block_mask"].int().argmax(-1), -1)
    start[0, 1:], start[2] = -1, -1
    batch = {name: value if name == "block_mask" else value[:, :read] for name, value in inputs.items()}
    batch |= labels(start.unsqueeze(-1))
    return batch | {"relevance_score": torch.randn(questions, beam, generator=generator)}


def test_a_batch_is_the_mean_of_its_questions_and_an_answerless_one_counts_as_zero(reader):
    batch = batch_of_questions()
    outputs = reader(**batch)
    single = [reader(**{name: value[number] for name, value in batch.items()}) for number in range(3)]
    torch.testing.assert_close(outputs.loss, torch.stack([one.loss for one in single]).mean(), atol=1e-5, rtol=0)
    assert single[2].loss == outputs.retriever_loss[2] == outputs.reader_loss[2] == 0
    assert outputs.loss > 0
    for name in ("retriever_loss", "reader_loss", "block_idx", "candidate", "start_pos", "end_pos"):
        expected = torch.stack([one[name].squeeze() for one in single])
        torch.testing.assert_close(outputs[name], expected, atol=1e-5, rtol=0)
    assert outputs.reader_correct.shape == (3, 3, 24 + 23 + 22 + 21)


def test_a_passage_that_a_question_lacks_changes_nothing(reader):
    batch = batch_of_questions()
    one = {name: value[1] for name, value in batch.items()}
    shorter = {name: value[: 2 if value.size(0) == 3 else 4] for name, value in one.items()}
    absent = {name: value.clone() for name, value in one.items()}
    absent["block_mask"][2:] = False
    absent["relevance_score"][4] = -torch.inf
    shorter["block_mask"][2:] = False
    expected, found = reader(**shorter), reader(**absent)
    for name in ("loss", "retriever_loss", "reader_loss", "block_idx", "start_pos", "end_pos"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)


def test_the_passages_score_stands_inside_the_one_softmax(reader):
    inputs, scores = joint_inputs(3), torch.tensor([0.5, 2.0, -1.0])
    spans = reader.score_spans(**inputs)
    gold = int((spans.pair == 1).nonzero()[2])
    position = torch.full((3, 1), -1)
    start, end = position.clone(), position.clone()
    start[1], end[1] = spans.start[gold], spans.end[gold]
    logits = spans.logits + scores[spans.pair]
    outputs = reader(**inputs, relevance_score=scores, **labels(start, end))
    torch.testing.assert_close(outputs.reader_loss, -logits.log_softmax(0)[gold])
    assert torch.equal(span_log_softmax(logits, torch.zeros_like(spans.pair), 1).argmax(), logits.argmax())
    best = int(logits.argmax())
    found = [int(outputs[name]) for name in ("block_idx", "start_pos", "end_pos")]
    assert found == [int(spans.pair[best]), int(spans.start[best]), int(spans.end[best])]


def test_answers_outside_the_passage_or_too_wide_are_not_counted(reader):
    inputs = {name: value[:1] for name, value in joint_inputs(1).items()}
    body = inputs["block_mask"][0].nonzero().flatten()
    first, last = int(body[0]), int(body[-1])
    assert last - first > 4
    starts = torch.tensor([[first - 1, first, first, last, 1]])
    ends = torch.tensor([[first - 1, first + 4, first - 1, LENGTH + 5, 2]])
    outputs = reader(**inputs, relevance_score=torch.zeros(1), **labels(starts, ends))
    assert outputs.reader_loss == 0
    one_right = reader(**inputs, relevance_score=torch.zeros(1), **labels(starts[:, 1:2], ends[:, 1:2] - 1))
    assert one_right.reader_loss > 0
    assert int(one_right.reader_correct.sum()) == 1


def test_of_equal_spans_the_first_is_the_answer(reader):
    # Equal rows of a batch are equal to the last digits only, spans that weigh nothing to the bit.
    reader.qa_outputs.dense_output.weight.data.zero_()
    inputs = {name: value.repeat(3, 1) for name, value in joint_inputs(1).items()}
    first = inputs["block_mask"][0].nonzero()[0].item()
    for scores, block in (([1.0, 1, 1], 0), ([0.0, 1, 1], 1)):
        found = reader(**inputs, relevance_score=torch.tensor(scores))
        assert (int(found.block_idx), int(found.start_pos), int(found.end_pos)) == (block, first, first)


def test_of_equal_spans_in_one_passage_the_shortest_is_the_answer_as_in_the_port(reader):
    logits, of = torch.tensor([0.0, 2.0, 2.0, 2.0]), torch.tensor
    spans = SpanScores(logits, pair=of([0, 0, 0, 1]), start=of([5, 5, 7, 4]), end=of([5, 7, 7, 4]))
    # Joint inputs 0 and 1 are of the first question, 2 and 3 of the second.
    read = ReadBeam(spans, torch.zeros(2, 2), of([0, 0, 1, 1]), of([0, 1, 0, 1]), LENGTH)
    best = reader._best_spans(read)
    # The second question has no span.
    found = {name: value.tolist() for name, value in best.items()}
    assert found == {"block_idx": [0, 0], "candidate": [7, 0], "start_pos": [7, 0], "end_pos": [7, 0]}


def test_recorded_hidden_states_positions_and_embeddings_take_the_padded_way_to_the_same_answer(reader):
    inputs, scores = joint_inputs(3), torch.tensor([0.5, 2.0, -1.0])
    expected = reader(**inputs, relevance_score=scores, **labels(torch.full((3, 1), 8)))
    ids = inputs.pop("input_ids")
    ways = (
        {"input_ids": ids, "output_hidden_states": True},
        {"input_ids": ids, "position_ids": torch.arange(LENGTH).expand(3, -1)},
        {"inputs_embeds": reader.get_input_embeddings()(ids)},
    )
    for way in ways:
        found = reader(**inputs, **way, relevance_score=scores, **labels(torch.full((3, 1), 8)))
        torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=0)
        assert found.candidate == expected.candidate
        assert (found.hidden_states is not None) == ("output_hidden_states" in way)
    assert len(reader(ids, **inputs, relevance_score=scores, output_hidden_states=True).hidden_states) == 3


def test_tuples_have_the_ports_order(reader):
    inputs, scores = joint_inputs(2), torch.zeros(2)
    plain = reader(**inputs, relevance_score=scores, return_dict=False)
    assert [tuple(value.shape) for value in plain] == [(), (), (1,), (1,)]
    labelled = reader(**inputs, relevance_score=scores, **labels(torch.full((2, 1), 8)), return_dict=False)
    assert [tuple(value.shape) for value in labelled] == [(), (), (), (2,), (2, 90), (), (), (1,), (1,)]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("relevance_score", "`relevance_score` is missing"),
        ("block_mask", "`block_mask` is missing"),
        ("input_ids", "`input_ids` or `inputs_embeds`"),
    ],
)
def test_what_is_missing_is_named(reader, missing, message):
    inputs = joint_inputs(2) | {"relevance_score": torch.zeros(2)}
    del inputs[missing]
    with pytest.raises(ValueError, match=message):
        reader(**inputs)


def test_head_masks_are_refused(reader):
    with pytest.raises(ValueError, match="no head masks"):
        reader(**joint_inputs(2), relevance_score=torch.zeros(2), head_mask=torch.ones(2))


def test_every_read_parameter_learns_and_unread_ones_are_frozen(reader, tmp_path):
    reader.save_pretrained(tmp_path)
    for model in (reader, RealmReader.from_pretrained(tmp_path), reader.requires_grad_(True)):
        model(**batch_of_questions()).loss.backward()
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert all(name.startswith(("realm.pooler.", "cls.")) for name in frozen)
        assert len(frozen) == 8
        assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_saving_and_loading_keeps_all_weights_and_the_answer(reader, tmp_path):
    reader.save_pretrained(tmp_path)
    loaded, info = RealmReader.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = joint_inputs(3)
    same_scores(loaded.score_spans(**inputs).logits, reader.score_spans(**inputs).logits)
    stored = dict(reader.named_parameters())
    assert all(torch.equal(parameter, stored[name]) for name, parameter in loaded.named_parameters())


def test_a_resized_reader_scores_as_before_and_loads(reader, tmp_path):
    inputs = joint_inputs(3)
    before = reader.score_spans(**inputs).logits
    reader.resize_token_embeddings(reader.config.vocab_size + 3)
    reader.save_pretrained(tmp_path)
    same_scores(RealmReader.from_pretrained(tmp_path).score_spans(**inputs).logits, before)


def test_autocast_scores_spans_in_float32(reader):
    inputs = joint_inputs(4)
    expected = reader.score_spans(**inputs).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = reader.score_spans(**inputs).logits
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0)
    # Logits that were rounded to bfloat16 would repeat.
    assert len(found.unique()) == len(found)


def test_a_bfloat16_reader_gives_float32_logits(reader):
    inputs = joint_inputs(4)
    expected = reader.score_spans(**inputs).logits
    found = reader.to(torch.bfloat16).score_spans(**inputs).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.3, rtol=0)


def test_inputs_shorter_than_the_widest_span_are_read():
    config = RealmConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ids, body = torch.full((1, 5), 7), torch.tensor([[0, 0, 1, 1, 0]]).bool()
    outputs = RealmReader(config).eval()(
        ids, relevance_score=torch.zeros(1), block_mask=body, **labels(body.long() * 2)
    )
    assert outputs.reader_correct.shape == (1, 5 + 4 + 3 + 2 + 1)
    assert int(outputs.start_pos) >= 2 and int(outputs.end_pos) <= 3
