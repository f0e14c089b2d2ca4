"""Tables of rules: every tensor has exactly one place, checked before anything is read."""

import ml_dtypes
import numpy as np
import pytest

from maft_jax.convert import rules
from maft_jax.convert.formats import _LAYOUTS
from maft_jax.convert.rules import Ignored, Rule
from maft_jax.convert.stored_tensor import StoredTensor, in_memory
from maft_jax.runtime import tree_rules
from tests.in_memory_weights import to_ours


def shaped(**shapes):
    """An expected tree with leaves of these shapes."""
    leaves = {path.replace("__", "/"): np.empty(shape) for path, shape in shapes.items()}
    return tree_rules.unflatten(leaves)


def array(*shape, dtype=np.float32):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


JOIN = Rule(
    ("q.{}", "k.{}"),
    "block_{}/qk",
    lambda shape, q, k: np.stack([q.T, k.T]),
    lambda x: (x[0].T, x[1].T),
)
STACK = Rule("layers/w", "block_{}/w", stacked=True)
CONSTANT = Rule((), "bias", lambda shape: np.zeros(shape, np.float32))


def there_and_back(tensors, expected, table):
    leaves = rules.stored_as_ours(in_memory(tensors), expected, table, source="test")
    back = rules.stored_as_foreign(leaves, table)
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].shape == tensor.shape and back[name].dtype == tensor.dtype
        np.testing.assert_array_equal(back[name].read(), tensor, err_msg=name)
    return {path: leaf.read() for path, leaf in leaves.items()}


def test_several_tensors_become_one_and_several_again():
    tensors = {"q.0": array(2, 3), "k.0": array(2, 3) + 10}
    ours = there_and_back(tensors, shaped(block_0__qk=(2, 3, 2)), [JOIN])
    np.testing.assert_array_equal(ours["block_0/qk"][1], tensors["k.0"].T)


def test_one_stacked_tensor_becomes_layers_and_one_again():
    tensors = {"layers/w": array(11, 2)}
    expected = shaped(**{f"block_{layer}__w": (2,) for layer in range(11)})
    ours = there_and_back(tensors, expected, [STACK])
    np.testing.assert_array_equal(ours["block_10/w"], [20, 21])


@pytest.mark.parametrize("layers", [2, 4])
def test_stack_of_another_number_of_layers_is_refused(layers):
    expected = shaped(**{f"block_{layer}__w": (2,) for layer in range(3)})
    message = rf"of wrong shape: layers/w \({layers}, 2\) instead of \(3, 2\)"
    with pytest.raises(ValueError, match=message):
        to_ours({"layers/w": array(layers, 2)}, expected, [STACK], source="x")


def test_absent_tensor_is_a_constant_and_only_that_can_be_written():
    ours = there_and_back({}, shaped(bias=(3,)), [CONSTANT])
    np.testing.assert_array_equal(ours["bias"], np.zeros(3))
    with pytest.raises(ValueError, match="1 without a place in this format: bias"):
        rules.to_foreign({"bias": np.array([0, 0, 1e-30])}, [CONSTANT])


def test_dtype_of_the_source_is_kept_until_it_is_read_as_parameters():
    tensors = {"layers/w": array(2, 2, dtype=np.float16)}
    expected = shaped(block_0__w=(2,), block_1__w=(2,))
    assert there_and_back(tensors, expected, [STACK])["block_0/w"].dtype == np.float16
    ours = to_ours(tensors, expected, [STACK], source="x")
    assert ours["block_1"]["w"].dtype == np.float32
    mixed = {"q.0": array(1, 1, dtype=ml_dtypes.bfloat16), "k.0": array(1, 1)}
    leaves = rules.stored_as_ours(
        in_memory(mixed), shaped(block_0__qk=(2, 1, 1)), [JOIN], source=""
    )
    assert leaves["block_0/qk"].dtype == np.float32


def test_tensor_that_two_rules_match_is_an_error_of_the_table():
    table = [Rule("w.{}", "a_{}"), Rule("w.1", "b")]
    with pytest.raises(ValueError, match=r"rule table: the tensor 'w\.1' is matched by 2 rules"):
        to_ours({"w.1": array(1)}, shaped(a_1=(1,)), table, source="x")
    table = [Rule("v", "a_{}"), Rule("w", "a_1")]
    with pytest.raises(ValueError, match=r"rule table: our parameter 'a_1' is matched by 2 rules"):
        to_ours({"w": array(1)}, shaped(a_1=(1,)), table, source="x")


def test_tensor_that_is_both_converted_and_ignored_is_an_error_of_the_table():
    with pytest.raises(ValueError, match=r"rule table: the tensor 'w' is matched by 1 rules"):
        to_ours(
            {"w": array(1)}, shaped(a=(1,)), [Rule("w", "a")], [Ignored("w", "no use")], source="x"
        )


def test_nothing_is_read_before_everything_was_checked():
    def fail():
        raise AssertionError("read")

    tensors = {
        "w": StoredTensor((2,), np.dtype(np.float32), fail),
        "v": StoredTensor((2,), np.dtype(np.int64), fail),
    }
    table = [Rule("w", "a"), Rule("v", "b"), Rule("u", "c")]
    with pytest.raises(ValueError, match=r"1 missing: u; 1 of wrong shape: w .*dtype: v int64"):
        rules.stored_as_ours(tensors, shaped(a=(3,), b=(2,), c=(1,)), table, source="x")
    leaves = rules.stored_as_ours({"w": tensors["w"]}, shaped(a=(2,)), [Rule("w", "a")], source="x")
    rules.stored_as_foreign(leaves, [Rule("w", "a")])


def test_a_layer_number_written_otherwise_is_unknown():
    tensors = {"w.0": array(1), "w.00": array(1)}
    with pytest.raises(ValueError, match=r"1 unknown: w\.00"):
        to_ours(tensors, shaped(a_0=(1,)), [Rule("w.{}", "a_{}")], source="x")


def test_value_that_cannot_be_written_is_named():
    def only_zero(x):
        if np.any(x):
            raise ValueError("expected zeros")
        return x

    tensors = rules.stored_as_foreign(
        in_memory({"a": array(2)}), [Rule("w", "a", to_foreign=only_zero)]
    )
    with pytest.raises(ValueError, match="our parameter 'a': expected zeros"):
        tensors["w"].read()


def test_overflow_of_half_precision_is_refused_and_infinity_is_not():
    tensor = in_memory({"x": np.array([1, 7e4], np.float32)})["x"]
    with pytest.raises(ValueError, match=r"values up to 70000.0 do not fit float16"):
        tensor.cast(np.float16).read()
    infinite = in_memory({"x": np.array([1, np.inf], np.float32)})["x"]
    assert np.isinf(infinite.cast(np.float16).read()[1])
    assert tensor.cast(np.float32) is tensor


@pytest.mark.parametrize("layout", _LAYOUTS, ids=lambda layout: layout.name)
def test_no_two_rules_of_a_format_lead_to_one_place(layout):
    table = layout.rules
    for side in ([rule.ours for rule in table], [n for rule in table for n in rule.names]):
        assert len(set(side)) == len(side)


def test_comparisons_grow_with_the_names_and_not_with_names_times_rules(monkeypatch):
    """A file of twice as many kinds of tensors, in each direction; no clock."""
    pattern, compared = rules._pattern, []
    monkeypatch.setattr(rules, "_pattern", lambda name: compared.append(name) or pattern(name))

    def comparisons(kinds):
        letters = [chr(ord("a") + kind // 26) + chr(ord("a") + kind % 26) for kind in range(kinds)]
        table = [Rule(f"{name}.{{}}.w", f"{name}_{{}}/kernel") for name in letters]
        expected = shaped(**{f"{name}_3__kernel": (2,) for name in letters})
        compared.clear()
        there_and_back({f"{name}.3.w": array(2) for name in letters}, expected, table)
        return len(compared)

    assert comparisons(60) == 2 * comparisons(30) > 0


def test_numbers_beside_a_layer_number_are_part_of_the_name():
    table = [Rule("a1.{}.w", "a1_{}/w"), Rule("a2.{}.w", "a2_{}/w"), Rule("b1{}.w", "b{}/w")]
    expected = shaped(a1_0__w=(2,), a2_0__w=(2,), b5__w=(2,))
    tensors = {"a1.0.w": array(2), "a2.0.w": array(2) + 2, "b15.w": array(2) + 4}
    ours = there_and_back(tensors, expected, table)
    assert [ours[path][0] for path in ("a1_0/w", "a2_0/w", "b5/w")] == [0, 2, 4]
