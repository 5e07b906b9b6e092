"""RealmForPreTraining computes equation 1 and its gradient (section 3.3), however a batch is laid out."""

import pytest
import torch

from realm_hf import RealmForPreTraining

LQ, LC, LJ, M = 9, 14, 20, 3


def random_rows(generator, shape, vocabulary):
    lengths = torch.randint(M + 2, shape[-1] + 1, shape[:-1], generator=generator)
    mask = (torch.arange(shape[-1]) < lengths.unsqueeze(-1)).long()
    return torch.randint(5, vocabulary, shape, generator=generator) * mask, mask


def make_batch(vocabulary, candidates, queries=4, seed=0):
    """Padding everywhere, 0 to M labels per row, a null passage in front, absent candidates, passages that repeat."""
    generator = torch.Generator().manual_seed(seed)
    query_ids, query_mask = random_rows(generator, (queries, LQ), vocabulary)
    # A pool of passages: the null passage is -1; equal ids must mean equal tokens.
    pool_ids, pool_mask = random_rows(generator, (queries * 2, LC), vocabulary)
    pool_ids[-1], pool_mask[-1] = 0, 0
    pool_ids[-1, :3], pool_mask[-1, :3] = torch.tensor([2, 3, 3]), 1
    ids = torch.randint(0, queries * 2 - 1, (queries, candidates), generator=generator)
    ids[:, 0] = -1
    for row in range(1, queries):
        ids[row, candidates - min(row - 1, candidates - 1) :] = -2
    joint_ids, joint_mask = random_rows(generator, (queries, candidates, LJ), vocabulary)
    positions = torch.stack([torch.randperm(M + 2, generator=generator)[:M] for _ in range(queries)])
    labels = torch.randint(5, vocabulary, (queries, M), generator=generator)
    for row in range(queries):
        labels[row, row % (M + 1) :] = -100
    positions[labels == -100] = LJ - 1  # may lie behind the end of a row
    return {
        "query_input_ids": query_ids,
        "query_attention_mask": query_mask,
        "candidate_input_ids": pool_ids[ids.clamp(min=-1)],
        "candidate_attention_mask": pool_mask[ids.clamp(min=-1)],
        "candidate_token_type_ids": (torch.arange(LC) > 5).long() * pool_mask[ids.clamp(min=-1)],
        "joint_input_ids": joint_ids,
        "joint_attention_mask": joint_mask,
        "joint_token_type_ids": (torch.arange(LJ) > 7).long() * joint_mask,
        "candidate_mask": ids > -2,
        "candidate_ids": ids,
        "mlm_positions": positions,
        "mlm_labels": labels,
    }


def make_model(config, marginalization="token", seed=0, **fields):
    config.marginalization = marginalization
    config.hidden_act = "gelu_new"
    # Scores of unit size: with the natural size p(z|x) is 0 or 1 and nothing would be tested.
    config.score_scale = 0.05
    config.initializer_range = 0.3
    for name, value in fields.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    return RealmForPreTraining(config).double().eval()


def enumerate_likelihoods(model, batch):
    """p(y_m|z, x) and p(z|x) by one padded-free forward pass per pair, lists of lists."""
    probabilities, priors = [], []
    for row in range(len(batch["query_input_ids"])):
        present = batch["candidate_mask"][row].nonzero().flatten().tolist()
        labels = batch["mlm_labels"][row]
        query = model.query_embedder(
            batch["query_input_ids"][row : row + 1], batch["query_attention_mask"][row : row + 1]
        ).projected_score[0]
        scores, gold = [], []
        for k in present:
            keep = batch["candidate_attention_mask"][row, k] == 1
            passage = model.embedder(
                batch["candidate_input_ids"][row, k][keep].unsqueeze(0),
                token_type_ids=batch["candidate_token_type_ids"][row, k][keep].unsqueeze(0),
            ).projected_score[0]
            scores.append(model.config.score_scale * (query @ passage))
            keep = batch["joint_attention_mask"][row, k] == 1
            logits = model.encoder(
                batch["joint_input_ids"][row, k][keep].unsqueeze(0),
                token_type_ids=batch["joint_token_type_ids"][row, k][keep].unsqueeze(0),
            ).logits[0]
            gold.append(
                [
                    logits.softmax(-1)[p, y]
                    for p, y in zip(batch["mlm_positions"][row], labels, strict=True)
                    if y != -100
                ]
            )
        probabilities.append(gold)
        priors.append(torch.stack(scores).softmax(0))
    return probabilities, priors


def brute_force_loss(model, batch, marginalization):
    """Minus log p(y|x), from probabilities, without any logarithm or batching inside."""
    total, count = 0.0, 0
    for gold, prior in zip(*enumerate_likelihoods(model, batch), strict=True):
        if not gold[0]:
            continue
        if marginalization == "span":
            total = total - torch.log(sum(p * torch.stack(g).prod() for p, g in zip(prior, gold, strict=True)))
            count += 1
        else:
            for m in range(len(gold[0])):
                total = total - torch.log(sum(p * g[m] for p, g in zip(prior, gold, strict=True)))
                count += 1
    return total / count


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def learned(model, batch, **more):
    """What a forward pass returns and the gradients that it leaves, which are cleared."""
    output = model(**batch, **more)
    output.loss.backward()
    found = gradients(model)
    model.zero_grad()
    return output, found


def assert_same_gradients(found, expected, atol=1e-9):
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, atol=atol, rtol=1e-7, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("candidates", [1, 2, 5, 16])
@pytest.mark.parametrize("marginalization", ["token", "span"])
def test_loss_and_all_gradients_equal_brute_force_enumeration(tiny_config, marginalization, candidates):
    model = make_model(tiny_config, marginalization)
    batch = make_batch(tiny_config.vocab_size, candidates)
    loss = model(**batch).loss
    loss.backward()
    found = gradients(model)
    model.zero_grad()
    expected = brute_force_loss(model, batch, marginalization)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)
    if candidates == 1:  # p(z|x) is 1: the towers get exact zeros here and nothing at all there
        found = {name: value for name, value in found.items() if name.startswith("encoder.")}
    assert_same_gradients(found, {name: g for name, g in gradients(model).items() if name in found})


def unread_in(batch):
    """For each query the candidates of the others that are not its own: the first of equal ones, no null passage."""
    ids = batch["candidate_ids"]
    flat, mask = ids.flatten().tolist(), torch.zeros(len(ids), ids.numel(), dtype=torch.bool)
    for row, own in enumerate(ids.tolist()):
        for place, passage in enumerate(flat):
            mask[row, place] = passage >= 0 and passage not in own and flat.index(passage) == place
    return mask


@pytest.mark.parametrize("marginalization", ["token", "span"])
def test_unread_candidates_count_at_the_null_passages_worth(tiny_config, marginalization):
    model, batch = make_model(tiny_config, marginalization), make_batch(tiny_config.vocab_size, 4)
    unread = unread_in(batch)
    assert unread.any(-1).tolist() == [True] * 4
    # Read by hand: the joint input of an unread passage is the null passage's.
    every = torch.cat([batch["candidate_ids"], batch["candidate_ids"].flatten().expand(len(unread), -1)], 1)
    longer = {"candidate_ids": every.masked_fill(torch.cat([torch.zeros_like(every[:, :4]) > 0, ~unread], 1), -2)}
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        own, joint = batch[f"candidate_{name}"], batch[f"joint_{name}"]
        others = own.flatten(0, 1).expand(len(own), -1, -1)
        longer[f"candidate_{name}"] = torch.cat([own, others], 1)
        longer[f"joint_{name}"] = torch.cat([joint, joint[:, :1].expand(-1, others.shape[1], -1)], 1)
    longer["candidate_mask"] = longer["candidate_ids"] > -2
    expected, wanted = learned(model, {**batch, **longer})
    found, gradient = learned(model, batch, unread_mask=unread)
    torch.testing.assert_close(found.loss, expected.loss)
    assert_same_gradients(gradient, wanted)
    assert abs(found.loss.item() - model(**batch).loss.item()) > 1e-3
    torch.testing.assert_close(found.marginal_utility, expected.marginal_utility)
    prior = expected.candidate_log_probs.exp()
    torch.testing.assert_close(found.null_mass, prior[:, 0] + prior[:, 4:].sum(-1))
    torch.testing.assert_close(found.candidate_log_probs[:, 1:].exp(), prior[:, 1:4])


def test_a_query_without_unread_candidates_learns_as_without_them(tiny_config):
    model, batch = make_model(tiny_config), make_batch(tiny_config.vocab_size, 3)
    none = torch.zeros(4, 12, dtype=torch.bool)
    assert_same_gradients(learned(model, batch, unread_mask=none)[1], learned(model, batch)[1])


@pytest.mark.parametrize("candidates", range(1, 17))
def test_span_gradient_at_the_scores_is_the_papers(tiny_config, candidates):
    """Section 3.3: d log p(y|x) / d f(x, z) = [p(y|z, x) / p(y|x) - 1] p(z|x)."""
    model = make_model(tiny_config, "span")
    batch = make_batch(tiny_config.vocab_size, candidates)
    outputs = model(**batch, num_items=1)
    outputs.retrieval_score.retain_grad()
    outputs.loss.backward()
    prior = outputs.candidate_log_probs.detach().exp()
    likelihood = outputs.gold_log_probs.detach().sum(-1).exp()
    marginal = (prior * likelihood).sum(-1, keepdim=True)
    expected = (likelihood / marginal - 1) * prior
    expected[(batch["mlm_labels"] == -100).all(-1)] = 0.0
    torch.testing.assert_close(-outputs.retrieval_score.grad, expected, atol=1e-6, rtol=0)
    if candidates > 1:
        assert expected.abs().max() > 1e-3
    torch.testing.assert_close(outputs.marginal_log_probs.detach().exp()[1:], marginal.squeeze(-1)[1:])


@pytest.mark.parametrize("candidates", range(1, 17))
def test_token_gradient_at_the_scores_is_the_mean_of_the_tokens(tiny_config, candidates):
    model = make_model(tiny_config, "token")
    batch = make_batch(tiny_config.vocab_size, candidates)
    outputs = model(**batch)
    outputs.retrieval_score.retain_grad()
    outputs.loss.backward()
    prior = outputs.candidate_log_probs.detach().exp().unsqueeze(-1)
    likelihood = outputs.gold_log_probs.detach().exp()
    marginal = (prior * likelihood).sum(1, keepdim=True)
    labelled = (batch["mlm_labels"] != -100).unsqueeze(1)
    expected = ((likelihood / marginal - 1) * prior * labelled).sum(-1) / labelled.sum()
    torch.testing.assert_close(-outputs.retrieval_score.grad, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("marginalization", ["token", "span"])
def test_the_shared_towers_gradient_is_the_sum_of_two_towers_gradients(tiny_config, marginalization):
    shared = make_model(tiny_config, marginalization)
    untied = make_model(type(tiny_config)(**tiny_config.to_dict()), marginalization, share_embedders=False)
    state = shared.state_dict()
    queries = {n.replace("embedder.", "query_embedder.", 1): w for n, w in state.items() if n.startswith("embedder.")}
    untied.load_state_dict(state | queries)
    batch = make_batch(tiny_config.vocab_size, 5)
    for model in (shared, untied):
        model(**batch).loss.backward()
    for name, parameter in shared.embedder.named_parameters():
        if parameter.requires_grad:
            query, passage = untied.query_embedder.get_parameter(name), untied.embedder.get_parameter(name)
            torch.testing.assert_close(parameter.grad, query.grad + passage.grad, atol=1e-12, rtol=1e-9)
            assert query.grad.abs().max() > 0 or "key.bias" in name


@pytest.mark.parametrize("max_tokens", [1, 30, None])
@pytest.mark.parametrize("by_ids", [False, True])
def test_chunks_and_repeated_passages_change_neither_loss_nor_gradients(tiny_config, max_tokens, by_ids):
    model = make_model(tiny_config)
    batch = make_batch(tiny_config.vocab_size, 6)
    naive = {name: value for name, value in batch.items() if name != "candidate_ids"}
    model.max_tokens_per_chunk = 10**9
    expected = model(**naive)
    expected.loss.backward()
    expected_gradients = gradients(model)
    model.zero_grad()
    model.max_tokens_per_chunk = max_tokens
    found = model(**(batch if by_ids else naive))
    found.loss.backward()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-11, rtol=0)
    assert_same_gradients(gradients(model), expected_gradients, atol=1e-11)


def test_equal_passages_are_embedded_once_and_absent_ones_never(tiny_config):
    model = make_model(tiny_config)
    batch = make_batch(tiny_config.vocab_size, 6)
    encoded = []
    model.embedder.realm.embeddings.register_forward_hook(lambda _, __, output: encoded.append(output.shape[0]))
    model(**batch)
    distinct = set(batch["candidate_ids"].flatten().tolist()) - {-2}
    assert sum(encoded) == len(distinct) + len(batch["query_input_ids"])


@pytest.mark.parametrize("marginalization", ["token", "span"])
def test_vocabulary_logits_are_computed_at_masked_positions_only(tiny_config, marginalization):
    model = make_model(tiny_config, marginalization)
    batch = make_batch(tiny_config.vocab_size, 5)
    decoded, transformed = [], []
    head = model.encoder.cls.predictions
    head.decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(tuple(inputs[0].shape)))
    head.transform.dense.register_forward_pre_hook(lambda _, inputs: transformed.append(tuple(inputs[0].shape)))
    model(**batch).loss.backward()
    wanted = (batch["candidate_mask"].sum(-1) * (batch["mlm_labels"] != -100).sum(-1)).sum().item()
    assert decoded == transformed == [(wanted, tiny_config.hidden_size)]


def test_joint_inputs_without_label_or_candidate_are_not_encoded(tiny_config):
    model = make_model(tiny_config)
    batch = make_batch(tiny_config.vocab_size, 5)
    encoded = []
    model.encoder.realm.embeddings.register_forward_hook(lambda _, __, output: encoded.append(output.shape[0]))
    model(**batch)
    labelled = (batch["mlm_labels"] != -100).any(-1)
    assert sum(encoded) == batch["candidate_mask"][labelled].sum().item()


def test_a_batch_without_labels_has_zero_loss_and_gives_every_trainable_parameter_a_zero(tiny_config):
    """DistributedDataParallel waits for all parameters, also on a rank whose batch has nothing masked."""
    model = make_model(tiny_config)
    batch = make_batch(tiny_config.vocab_size, 3) | {"mlm_labels": torch.full((4, M), -100)}
    loss = model(**batch).loss
    assert loss.item() == 0.0
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or not parameter.grad.any(), name


def test_every_trainable_parameter_gets_a_gradient_and_unread_parts_are_frozen(tiny_config):
    model = make_model(tiny_config)
    model(**make_batch(tiny_config.vocab_size, 5)).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert without == frozen
    assert {name.rsplit(".", 1)[0] for name in frozen} == {
        "embedder.cls.predictions",
        "embedder.cls.predictions.decoder",
        "embedder.cls.predictions.transform.dense",
        "embedder.cls.predictions.transform.LayerNorm",
        "encoder.realm.pooler.dense",
    }


def test_detached_retrieval_gives_the_encoder_the_same_and_the_towers_zero_gradients(tiny_config):
    model = make_model(tiny_config)
    batch = make_batch(tiny_config.vocab_size, 5)
    joint, expected = learned(model, batch)
    detached = model(**batch, detach_retrieval=True)
    detached.loss.backward()
    torch.testing.assert_close(detached.loss, joint.loss)
    assert not detached.retrieval_score.requires_grad
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            reference = expected[name] if name.startswith("encoder.") else torch.zeros_like(parameter)
            torch.testing.assert_close(parameter.grad, reference)


@pytest.mark.parametrize("marginalization", ["token", "span"])
def test_micro_batches_with_a_global_count_add_up_to_the_whole(tiny_config, marginalization):
    model = make_model(tiny_config, marginalization)
    batch = make_batch(tiny_config.vocab_size, 4)
    whole = model(**batch)
    whole.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    labelled = batch["mlm_labels"] != -100
    count = labelled.sum() if marginalization == "token" else labelled.any(-1).sum()
    losses = []
    for rows in (slice(0, 1), slice(1, 4)):
        part = model(**{name: value[rows] for name, value in batch.items()}, num_items=count)
        part.loss.backward()
        losses.append(part.loss)
    torch.testing.assert_close(sum(losses), whole.loss)
    assert_same_gradients(gradients(model), expected)


def test_utility_and_null_mass_follow_from_the_log_probabilities(tiny_config):
    model = make_model(tiny_config)
    batch = make_batch(tiny_config.vocab_size, 5)
    outputs = model(**batch)
    probabilities, priors = enumerate_likelihoods(model, batch)
    for row, (gold, prior) in enumerate(zip(probabilities, priors, strict=True)):
        likelihood = torch.stack([torch.stack(g).prod() if g else prior.new_ones(()) for g in gold]).detach()
        utility = (likelihood / likelihood[0]).log()
        torch.testing.assert_close(outputs.retrieval_utility[row, : len(gold)], utility)
        assert not outputs.retrieval_utility[row, len(gold) :].any()
        marginal = ((likelihood * prior.detach()).sum() / likelihood[0]).log()
        torch.testing.assert_close(outputs.marginal_utility[row], marginal)
        torch.testing.assert_close(outputs.null_mass[row], prior[0].detach())


def test_rows_without_a_null_passage_have_no_utility(tiny_config):
    model = make_model(tiny_config)
    batch = make_batch(tiny_config.vocab_size, 5)
    batch["candidate_ids"][0, 0] = 77
    outputs = model(**batch)
    assert outputs.retrieval_utility.isnan().all(-1).tolist() == [True, False, False, False]
    assert outputs.marginal_utility.isnan().tolist() == [True, False, False, False]
    assert outputs.null_mass[0] == 0.0


def test_a_row_without_candidates_is_named(tiny_config):
    batch = make_batch(tiny_config.vocab_size, 2)
    batch["candidate_mask"][2] = False
    with pytest.raises(ValueError, match=r"Rows \[2\] of the batch have no candidate"):
        make_model(tiny_config)(**batch)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(tiny_config):
    model = make_model(tiny_config).train()
    batch = make_batch(tiny_config.vocab_size, 5)
    model(**batch).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    runs = []
    model.embedder.realm.encoder.layer[-1].intermediate.register_forward_hook(lambda *_: runs.append(1))
    model(**batch).loss.backward()
    assert_same_gradients(gradients(model), expected, atol=1e-12)
    assert len(runs) == 4  # queries and candidates, forward and again in backward


def test_autocast_keeps_scores_and_likelihoods_in_float32(tiny_config):
    model = make_model(tiny_config).float()
    batch = make_batch(tiny_config.vocab_size, 5)
    reference = model(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(**batch)
        embeddings = model.embedder(batch["query_input_ids"], batch["query_attention_mask"]).projected_score
    assert embeddings.dtype == torch.float32
    for name in ("loss", "retrieval_score", "candidate_log_probs", "gold_log_probs", "marginal_log_probs"):
        assert outputs[name].dtype == torch.float32, name
    assert (outputs.retrieval_score != outputs.retrieval_score.bfloat16().float()).any()
    torch.testing.assert_close(outputs.loss, reference.loss, atol=0.1, rtol=0)
    outputs.loss.backward()


def test_training_lowers_the_loss_and_moves_every_trainable_parameter(tiny_config):
    model = make_model(tiny_config).float().train()
    batch = make_batch(tiny_config.vocab_size, 5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(5):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        # A key's bias moves no softmax.
        if "key.bias" not in name:
            assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
