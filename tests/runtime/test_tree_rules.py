"""Rules over parameter paths: what they select, and that a typing error cannot select nothing."""

import pytest

from maft_jax.runtime import tree_rules

TREE = {
    "blocks_0": {"attn": {"kernel": 1, "bias": 2}, "mlp": {"kernel": 3}},
    "blocks_10": {"attn": {"kernel": 4}},
    "ln_post": {"scale": 5},
    "proj": 6,
}


def test_paths_are_keys_joined_by_slashes_in_the_trees_order():
    assert list(tree_rules.flatten(TREE).items()) == [
        ("blocks_0/attn/kernel", 1),
        ("blocks_0/attn/bias", 2),
        ("blocks_0/mlp/kernel", 3),
        ("blocks_10/attn/kernel", 4),
        ("ln_post/scale", 5),
        ("proj", 6),
    ]
    assert tree_rules.unflatten(tree_rules.flatten(TREE)) == TREE


def test_map_with_path_keeps_the_structure():
    mapped = tree_rules.map_with_path(lambda path, leaf: f"{path}={leaf}", TREE)
    assert mapped["blocks_0"]["mlp"] == {"kernel": "blocks_0/mlp/kernel=3"}
    assert mapped["proj"] == "proj=6"
    assert list(tree_rules.flatten(mapped)) == list(tree_rules.flatten(TREE))


@pytest.mark.parametrize(
    ("rules", "matches"),
    [
        (["attn"], True),
        (["^attn"], False),
        (["x", "kernel$"], True),
        (["blocks_1/"], False),
        ([], False),
    ],
)
def test_rules_search_anywhere_in_the_path(rules, matches):
    assert tree_rules.matches_any(rules, "blocks_10/attn/kernel") is matches


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (
            ["attn/"],
            {"blocks_0": {"attn": {"kernel": 1, "bias": 2}}, "blocks_10": {"attn": {"kernel": 4}}},
        ),
        (["^ln_post/", "^proj$"], {"ln_post": {"scale": 5}, "proj": 6}),
        (
            ["kernel", "blocks_10"],
            {
                "blocks_0": {"attn": {"kernel": 1}, "mlp": {"kernel": 3}},
                "blocks_10": {"attn": {"kernel": 4}},
            },
        ),
        (["."], TREE),
    ],
)
def test_select_returns_the_subtree_that_some_rule_matches(rules, expected):
    assert tree_rules.select(rules, TREE, where="config.x") == expected


def test_rule_that_matches_nothing_is_an_error_although_others_match():
    message = r"config\.x: the rule '/atn/' matches no parameter; paths look like \['blocks_0/attn"
    with pytest.raises(ValueError, match=message):
        tree_rules.select(["/attn/", "/atn/"], TREE, where="config.x")


def test_no_rules_select_nothing_which_is_an_error():
    with pytest.raises(ValueError, match=r"config\.x: no rules, so no parameters"):
        tree_rules.select([], TREE, where="config.x")


def test_broken_regular_expression_is_named():
    message = r"config\.x: '\(attn' is not a regular expression: missing \)"
    with pytest.raises(ValueError, match=message):
        tree_rules.select(["(attn"], TREE, where="config.x")
