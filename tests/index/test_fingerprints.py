import pytest
import torch

from realm_hf.models.fingerprints import state_fingerprint

STATE = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.tensor(1.5, dtype=torch.bfloat16)}


def test_order_and_memory_layout_do_not_matter():
    strided = {"b": STATE["b"].clone(), "a": STATE["a"].t().contiguous().t()}
    assert state_fingerprint(strided) == state_fingerprint(STATE)


@pytest.mark.parametrize(
    "changed",
    [
        {**STATE, "a": STATE["a"].reshape(3, 2)},
        {**STATE, "a": STATE["a"].double()},
        {**STATE, "b": torch.tensor(1.5078125, dtype=torch.bfloat16)},
        {"a": STATE["a"], "c": STATE["b"]},
        {"a": STATE["a"]},
    ],
    ids=["shape", "dtype", "one bit", "name", "missing"],
)
def test_any_difference_changes_the_fingerprint(changed):
    assert state_fingerprint(changed) != state_fingerprint(STATE)


def test_arrays_and_tensors_of_equal_content_agree():
    assert state_fingerprint({"a": STATE["a"].numpy()}) == state_fingerprint({"a": STATE["a"]})


def test_something_else_than_a_tensor_is_refused():
    with pytest.raises(TypeError, match="State 'step' is a int"):
        state_fingerprint({"step": 3})
