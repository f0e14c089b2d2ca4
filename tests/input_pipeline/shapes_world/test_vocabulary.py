import pytest

from input_pipeline.class_lists import load_class_list
from input_pipeline.dataset_specs import SPECS
from input_pipeline.shapes_world.outlines import SHAPES
from input_pipeline.shapes_world.splits import NUM_TRAIN, NUM_VAL
from input_pipeline.shapes_world.vocabulary import (
    BACKGROUNDS,
    CLASS_NAMES,
    COLORS,
    NUM_SPLITS,
    OBJECTS,
    PATTERNS,
    object_class,
    unseen_classes,
)

every_split = pytest.mark.parametrize("split", range(NUM_SPLITS))


def test_class_ids_are_those_of_the_built_in_list():
    classes = load_class_list("shapes_world")
    assert classes.names == CLASS_NAMES
    assert classes.label_values == tuple(range(42))


def test_class_ids_go_through_the_colours_of_one_pattern_after_another():
    assert (len(PATTERNS), len(COLORS), len(BACKGROUNDS)) == (6, 6, 6)
    assert CLASS_NAMES[0] == "plain red shape" and CLASS_NAMES[9] == "striped yellow shape"
    assert CLASS_NAMES[35] == "netted white shape" and CLASS_NAMES[36] == "brick"
    for pattern, pattern_name in enumerate(PATTERNS):
        for color, name in enumerate(COLORS):
            assert CLASS_NAMES[object_class(pattern, color)] == f"{pattern_name} {name} shape"


def test_no_class_is_named_after_an_outline():
    words = {word for name in CLASS_NAMES for word in name.split()}
    assert words == {*PATTERNS, *COLORS, *BACKGROUNDS, "shape"}
    assert not words & set(SHAPES)


def test_unseen_classes_of_the_first_split():
    assert unseen_classes(0) == (
        *("plain red shape", "plain yellow shape"),
        *("striped green shape", "striped purple shape"),
        *("dotted blue shape", "dotted white shape"),
        *("checked red shape", "checked yellow shape"),
        *("speckled green shape", "speckled purple shape"),
        *("netted blue shape", "netted white shape"),
    )


@every_split
def test_every_pattern_and_colour_of_an_unseen_class_is_seen_four_times(split):
    unseen = unseen_classes(split)
    seen = set(OBJECTS) - set(unseen)
    assert len(unseen) == len(set(unseen)) == 12 and len(seen) == 24
    for word in (*PATTERNS, *COLORS):
        assert sum(word in name.split() for name in seen) == 4
        assert sum(word in name.split() for name in unseen) == 2


def test_splits_share_no_class_and_leave_out_every_object_once():
    left_out = [name for split in range(NUM_SPLITS) for name in unseen_classes(split)]
    assert sorted(left_out) == sorted(OBJECTS)


@pytest.mark.parametrize("split", [-1, 3])
def test_there_are_three_splits(split):
    with pytest.raises(ValueError, match=rf"split {split} of shapes world: expected 0 \.\. 2"):
        unseen_classes(split)


def test_facts_of_the_data_set_are_those_of_the_world():
    spec = SPECS["shapes_world"]
    assert spec.unseen_classes == unseen_classes(0)
    assert spec.unseen_ids == (0, 3, 7, 10, 14, 17, 18, 21, 25, 28, 32, 35)
    assert spec.num_images == {"train": (NUM_TRAIN,), "val": (NUM_VAL,)}
