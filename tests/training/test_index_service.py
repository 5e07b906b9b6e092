"""What the arguments say of index and builder reaches them."""

import pytest
from three_trainers import trainer_of

from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.training import index_service
from realm_hf.training.arguments import RealmTrainingArguments


class Asked(Exception):
    """The refresher was asked for."""


def test_arguments_of_the_builder_reach_it(world, tmp_path, monkeypatch):
    asked = {}

    def refresher(mode, run, accelerator, **named):
        asked.update(named, mode=mode)
        raise Asked

    monkeypatch.setattr(index_service, "make_refresher", refresher)
    given = {"builder_threads": 2, "keep_generations": 5}
    made = trainer_of("pre-training", world, tmp_path, refresh="external", **given)
    with pytest.raises(Asked):
        made.train()
    assert {**given, "mode": "external"}.items() <= asked.items()


def test_arguments_of_the_stored_vectors_are_those_of_the_run_and_hold_for_it(world, tmp_path):
    given = {"embedding_dtype": "float16", "index_train_size": 50, "max_tokens_per_batch": 512}
    trainer_of("pre-training", world, tmp_path, max_steps=1, index_factory="IVF2,Flat", **given).train()
    config = RunDirectory.open(tmp_path).config
    assert {name: getattr(config, name) for name in given} == given
    stored = trainer_of("pre-training", world, tmp_path).index
    with stored.keep(generation_of_step_1(tmp_path)) as generation:
        assert generation.embeddings.dtype == "float16"
    with pytest.raises(RunDirectoryError, match="embedding_dtype: 'float16' then, 'float32' now"):
        trainer_of("pre-training", world, tmp_path, embedding_dtype="float32")


def generation_of_step_1(run):
    return sorted(path.name for path in (run / "index").iterdir() if path.name.startswith("step-1-"))[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"embedding_dtype": "int8"}, "embedding_dtype is 'int8'"),
        ({"max_tokens_per_batch": 0}, "max_tokens_per_batch is 0"),
        ({"index_train_size": 0}, "index_train_size is 0"),
    ],
)
def test_impossible_setting_of_the_index_is_refused_in_words(wrong, message):
    with pytest.raises(ValueError, match=message):
        RealmTrainingArguments(output_dir="x", **wrong)


def test_trainer_asks_its_index_for_the_served_generation_and_whether_one_is_built(world, tmp_path):
    made = trainer_of("pre-training", world, tmp_path, max_steps=2)
    with pytest.raises(RuntimeError, match="not served yet"):
        _ = made.index.is_building
    seen = []
    end = made.finish

    def finish():
        ended = end()
        seen.append((made.index.generation, made.index.is_building, ended["final_generation"]))
        return ended

    made.finish = finish
    made.train()
    ((served, is_building, final),) = seen
    assert served == final and final.startswith("step-2-") and not is_building
