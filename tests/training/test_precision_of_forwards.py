"""With bf16, all that a training encodes is in bfloat16: FlashAttention takes no float32, and would end the run.

An attention that is as strict stands for it, through whole trainings: steps, queries ahead, probes, evaluation and the
examples written at the end.
"""

from collections import Counter

import pytest
import torch
from question_worlds import qa_model, qa_trainer, questions
from tiny_worlds import load_world, tiny_model, tiny_tokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from realm_hf.training.arguments import InverseClozeTrainingArguments, RealmTrainingArguments
from realm_hf.training.inverse_cloze import InverseClozeTrainer
from realm_hf.training.pretraining import RealmTrainer

STRICT = "refuses_float32"


@pytest.fixture
def calls():
    """The strict attention under the name [`STRICT`]; how often it was called with which type."""
    counted = Counter()

    def attend(module, query, key, value, attention_mask, **kwargs):
        counted[query.dtype] += 1
        if query.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register(STRICT, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(STRICT, sdpa_mask)
    yield counted
    for functions in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        del type(functions)._global_mapping[STRICT]


def strict(model):
    for part in model.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation = STRICT
    return model


@pytest.mark.parametrize("query_encoder", ["live", "snapshot"])
def test_pre_training_to_its_end(calls, world, tmp_path, query_encoder):
    passages, sentences = load_world(world)
    args = RealmTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        eval_steps=2,
        per_device_train_batch_size=2,
        num_candidates=3,
        max_query_length=24,
        max_candidate_length=32,
        refresh="sync",
        refresh_steps=2,
        max_eval_sentences=4,
        query_encoder=query_encoder,
        bf16=True,
        use_cpu=True,
        disable_tqdm=True,
    )
    model = strict(tiny_model())
    trainer = RealmTrainer(
        model,
        args,
        train_dataset=sentences.train,
        eval_dataset=sentences.heldout,
        processing_class=tiny_tokenizer(),
        passages=passages,
    )
    assert trainer.train().step == 3
    assert (tmp_path / "examples.json").exists()
    assert calls.keys() == {torch.bfloat16}


def test_the_warm_start_to_its_end(calls, world, tmp_path):
    passages, _ = load_world(world)
    args = InverseClozeTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        bf16=True,
        use_cpu=True,
        disable_tqdm=True,
    )
    InverseClozeTrainer(strict(tiny_model()), args, train_dataset=passages, processing_class=tiny_tokenizer()).train()
    assert calls.keys() == {torch.bfloat16}


def test_fine_tuning_to_its_end(calls, world, tmp_path):
    asked = questions(world)
    settings = {"bf16": True, "refresh": "sync", "refresh_steps": 2, "probe_queries": 4}
    qa_trainer(world, tmp_path, strict(qa_model()), asked[8:], dev=asked[:8], **settings).train()
    assert calls.keys() == {torch.bfloat16}


def test_the_weights_behind_a_generation_encode_queries_and_probes_in_bfloat16(world, tmp_path, monkeypatch):
    """They are loaded from a snapshot, which says nothing of an attention; so what autocast does is looked at."""
    seen = []
    encode = type(tiny_model().embedder).encode_tokens

    def watched(self, *args, **kwargs):
        if not self.training and not any(p.requires_grad for p in self.parameters()):
            seen.append(torch.is_autocast_enabled("cpu"))
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(type(tiny_model().embedder), "encode_tokens", watched)
    passages, sentences = load_world(world)
    args = RealmTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        num_candidates=3,
        max_query_length=24,
        max_candidate_length=32,
        refresh="off",
        bf16=True,
        use_cpu=True,
        disable_tqdm=True,
    )
    RealmTrainer(
        tiny_model(), args, train_dataset=sentences.train, processing_class=tiny_tokenizer(), passages=passages
    ).train()
    assert seen and all(seen)
