import re

import pytest

from mm1_jax.layers.parameter_paths import (
    map_with_paths,
    parameter_paths,
    partition,
    picked,
    union,
)

PARAMS = {
    "vision_encoder": {"patches": {"kernel": 1, "bias": 2}},
    "decoder": {
        "stack": {"layer": {"attention": {"query": {"kernel": 3}}, "router": 4}},
        "norm": {"scale": 5},
    },
}
QUERY = "decoder/stack/layer/attention/query/kernel"
PATHS = parameter_paths(PARAMS)


def test_parameter_paths_match_the_leaves_of_the_tree():
    assert map_with_paths(lambda path, x: (path, x), PARAMS)["decoder"]["norm"]["scale"] == (
        "decoder/norm/scale",
        5,
    )
    assert dict(zip(PATHS, (5, 3, 4, 2, 1), strict=True))[QUERY] == 3


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((), set()),
        (("vision_encoder",), {"vision_encoder/patches/kernel", "vision_encoder/patches/bias"}),
        ((".*/attention", "decoder/norm/scale"), {QUERY, "decoder/norm/scale"}),
        ((".*/kernel",), {"vision_encoder/patches/kernel", QUERY}),
        # A pattern does not match a prefix of a name.
        (("decoder/stack/layer/router",), {"decoder/stack/layer/router"}),
    ],
)
def test_a_rule_matches_a_parameter_or_a_containing_module(rules, expected):
    assert picked(rules, PATHS, "field") == expected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("vision_encodr", "field: 'vision_encodr' picks no parameter; did you mean vision"),
        ("decod", "did you mean decoder"),
        ("router", "'.*/router' picks decoder/stack/layer/router"),
        ("connector", "did you mean decoder, vision_encoder"),
        ("decoder/(", "is not a regular expression"),
    ],
)
def test_a_rule_that_matches_nothing_is_an_error_with_suggestions(rule, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        picked([rule], PATHS, "field")


@pytest.mark.parametrize("rules", [(), ("vision_encoder",), (".*/kernel", "decoder/norm"), (".*",)])
def test_a_partition_has_two_disjoint_parts_that_cover_everything(rules):
    chosen = picked(rules, PATHS, "field")
    inside, outside = partition(PARAMS, chosen)
    assert set(parameter_paths(inside)) == chosen
    assert set(parameter_paths(outside)) == set(PATHS) - chosen
    assert union(inside, outside) == union(outside, inside) == PARAMS
