"""Class lists as other tools write them: recognised by content, or refused by line."""

import logging

import pytest

from input_pipeline.class_lists import parse_class_list


def read(text, **options):
    """Label value -> name."""
    classes = parse_class_list(text.encode(), "list.txt", **options)
    return dict(zip(classes.label_values, classes.names, strict=True))


OBJECT_INFO = (
    "Idx\tRatio\tTrain\tVal\tName\n"
    "1\t0.1576\t11664\t1172\twall\n"
    "2\t0.1072\t6046\t612\tbuilding, edifice\n"
)
COCO_CATEGORIES = (
    '[{"id": 1, "name": "person", "isthing": 1}, {"id": 3, "name": "car", "isthing": 1}]'
)
PBTXT = """# from the API
item {
  id: 1
  name: 'cat'
}
item { name: "dog's bed" id: 2 keypoints { id: 9 label: "ear" } }
item: {
  name: "/m/03wvsk", id: 17; display_name: "Hair dryer"  # Open Images
}
"""
MAPILLARY = """{"version": "1.2", "labels": [
  {"color": [165, 42, 42], "readable": "Bird", "name": "animal--bird", "evaluate": true},
  {"color": [0, 192, 0], "readable": "Curb", "name": "barrier--curb", "evaluate": true},
  {"color": [0, 0, 0], "readable": "Unlabeled", "name": "void--unlabeled", "evaluate": false}]}"""
ULTRALYTICS = "# a comment\npath: ../data\nnames:\n  0: person\n  1: no\n  2: hair drier\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0: unlabeled\n1: hair drier\n", {0: "unlabeled", 1: "hair drier"}),
        ("0 sky\n1 potted plant\n", {0: "sky", 1: "potted plant"}),
        ("0,sky\n1,tree\n", {0: "sky", 1: "tree"}),
        ("7;sky\n1;tree\n", {7: "sky", 1: "tree"}),
        ("1. sky\n2. tree\n", {1: "sky", 2: "tree"}),
        ("1) sky\n2) tree\n", {1: "sky", 2: "tree"}),
        ("0=sky\n1=tree\n", {0: "sky", 1: "tree"}),
        ("sky\t3\ntree\t1\n", {3: "sky", 1: "tree"}),
        ("sky,0\ntree,1\n", {0: "sky", 1: "tree"}),
        ("sky: 0\ntree: 4\n", {0: "sky", 4: "tree"}),
        ("id,name\n0,sky\n1,tree\n", {0: "sky", 1: "tree"}),
        ('id;name\n0;"salt; pepper"\n1;tree\n', {0: "salt; pepper", 1: "tree"}),
        ("Pixel Value, Class\n0, background\n1, sky\n", {0: "background", 1: "sky"}),
        ("name\tid\ncar\t3\nbus\t9\n", {3: "car", 9: "bus"}),
        ("label,class_name\n2,sky\n1,tree\n", {2: "sky", 1: "tree"}),
        ("index name\n0 potted plant\n1 sky\n", {0: "potted plant", 1: "sky"}),
        ("__ignore__\n_background_\ncat\ndog\n", {0: "background", 1: "cat", 2: "dog"}),
        (OBJECT_INFO, {1: "wall", 2: "building"}),
        ("Idx,Ratio,Train,Val,Stuff,Name\n1,.1,9,9,1,wall\n2,.1,9,9,1,building;edifice\n",
         {1: "wall", 2: "building"}),
        (COCO_CATEGORIES, {1: "person", 3: "car"}),
        (f'{{"images": [], "categories": {COCO_CATEGORIES}}}', {1: "person", 3: "car"}),
        ('{"id2label": {"0": "wall", "1": "sky"}, "hidden_size": 3}', {0: "wall", 1: "sky"}),
        ('{"labels": ["a"], "classes": [], "id2label": {"0": "wall"}}', {0: "wall"}),
        ('{"wall": 0, "sky": 7}', {0: "wall", 7: "sky"}),
        ('["wall", "sky"]', {0: "wall", 1: "sky"}),
        (MAPILLARY, {0: "Bird", 1: "Curb"}),
        ("_background_\ncat\n", {0: "background", 1: "cat"}),
        (PBTXT, {1: "cat", 2: "dog's bed", 17: "Hair dryer"}),
        (ULTRALYTICS, {0: "person", 1: "no", 2: "hair drier"}),
        ("nc: 2\nnames: ['person', 'hair drier']\n", {0: "person", 1: "hair drier"}),
        ("names:\n- person\n- on\n", {0: "person", 1: "on"}),
    ],
)  # fmt: skip
def test_numbers_are_label_values_and_headings_are_no_classes(text, expected):
    assert read(text) == expected
    assert read(text.replace("\n", "\r\n")) == expected


@pytest.mark.parametrize(
    "names",
    [
        ["boeing 747", "cat", "4 wheeler"],
        ["zone 1", "zone 2"],
        ["1 euro", "2 euro"],
        ["T-34", "T-72"],
        ["4-wheeler", "car", "bus"],
        ["wall", "building, edifice"],
        ["0", "1", "2"],
        ["C#", "3d printer"],
        ["class room", "label printer", "name tag"],
    ],
)
def test_names_with_numbers_and_commas_are_names_as_before(names):
    assert read("\n".join(names)) == dict(enumerate(names))


def test_tab_lines_keep_everything_after_the_tab():
    assert read("0\tperson, child\n1\t2 wheeler: bike\n") == {
        0: "person, child",
        1: "2 wheeler: bike",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0: sky\ntree\n2: road\n", r"list.txt:2: expected 'number: name' as on line 1, found 'tr"),
        ("0 sky\n1 tree\nroad\n", r":3: expected 'number name' as on line 1, found 'road'"),
        ("foo,bar\n0,sky\n1,tree\n", r":1: expected 'number,name' as on line 2, found 'foo,bar'"),
        ("0: sky\n-1: plate\n", r":2: expected 'number: name' .* found '-1: plate'"),
        ("sky 0\ntree 1\n", r":1: every line ends in a number, 'sky 0'.*write 'integer<TAB>name'"),
        ("name\nsky\ntree\n", r":1: 'name' looks like a heading"),
        ("Classes\nsky\n", r":1: 'Classes' looks like a heading"),
        ("sky\n# trees\ntree\n", r":2: expected a class name, found '# trees'"),
        ("item {\n  id: 1\n}\n", r":1: expected an item with id and name, found {'id': '1'}"),
        ("item {\n  name: 'sky'\n}\n", r":1: expected an item with id and name"),
        ("item { id: 1\n name: 'sky'\n", r":1: expected the item's closing bracket"),
        ("item { id: 1 name: 'a' }\n3 }", r":2: expected items such as item .* found '3'"),
        ("item { id: 1\nid: 2 name: 'a' }", r":2: 'id' stands twice"),
        ("item { id: 1 name: 'a }\n", r":1: expected items such as .* found \"'a }\""),
        ("item { id: -1 name: 'a' }\n", r":1: expected an item with id and name"),
        ("name,color\nroad,#804080\ncar,#00008e\n", r":1: 'name,color' looks like a heading"),
        ("name,supercategory\nroad,flat\ncar,vehicle\n", r":1: .* looks like a heading"),
        ("class;description\nroad;asphalt\n", r":1: .* looks like a heading"),
        ("name color\nroad red\n", r":1: 'name color' looks like a heading"),
        ("classes:\n  road\n  car\n", r":1: 'classes:' looks like a heading"),
        ("1.road\n2.sidewalk\n", r":1: expected a class name, found '1.road'"),
        ("1-road\n2-sidewalk\n", r":1: expected a class name, found '1-road'"),
        ("01_road\n02_sidewalk\n", r":1: expected a class name, found '01_road'"),
        ("1|road\n2|sidewalk\n", r":1: expected a class name, found '1|road'"),
        ("(1) road\n(2) sidewalk\n", r":1: expected a class name"),
        ("road (1)\nsidewalk (2)\n", r":1: expected a class name"),
        ("road/1\nsidewalk/2\n", r":1: expected a class name, found 'road/1'"),
        ("road|1\nsidewalk|2\n", r":1: expected a class name"),
        ("road #1\nsidewalk #2\n", r":1: expected a class name"),
        ("class_1: road\nclass_2: car\n", r":1: expected a class name, found 'class_1: road'"),
        ('{"0": "road", "0": "car"}', r"the key '0' stands twice"),
        ("names:\n  1: road\n  1: car\n", r"the key '1' stands twice"),
        ("- sky\n- tree\n", r":1: expected a class name, found '- sky'"),
        ("'sky',\n'tree',\n", r":1: expected a class name"),
        ("1\t0.15\twall\n2\t0.1\tsky\n", r":1: .*more columns"),
        ("64 128 64\tAnimal\nArchway\n", r":2: expected 'red green blue name' as on line 1"),
        ("# label:color_rgb:parts:actions\ncat:1,2,256::\n", r":2: expected red, green and blue"),
        ("cat:1,2,3::\ndog:1,2,3::\n", r":2: colour \(1, 2, 3\) of class 'dog' is that of 'cat'"),
        ("cat:1,2,3::\nvoid:1,2,3::\n", r":1: colour \(1, 2, 3\) of class 'cat' is that of 'void'"),
        ("sky,1,2,3\ntree,4,5,6\n", r":1: .*'sky,1,2' for value 3; several names"),
        ("0:background\n1:person,,girl\n", r":2: expected names with one comma .*'person,,girl'"),
        ("0:background\n1:person,3 men\n", r":2: .*found '3 men' for value 1; several names"),
        ("0,background\n1,person,child\n", r":2: .*'person,child' for value 1; several names"),
        ("0:bag,bags\n1:bag,bags\n", r":2: class 'bags' is already listed"),
        ("0 -> sky\n1 -> tree\n", r":1: .*'-> sky'"),
        ("name,id,trainId\nroad,7,0\nsky,23,10\n", r":1: expected one column .*'trainid'"),
        ("id,name\n0,sky\n1,tree,elm\n", r":3: expected 2 columns as in the headings on line 1"),
        ("id,name\n0,sky\nx,tree\n", r":3: expected an integer from 0, found 'x'"),
        ("id,name\n", r":1: found headings 'id,name' and no class"),
        ("id,name\n0,sky\n1,\n", r":3: the class name is blank"),
        ("_background_\n__ignore__\ncat\n", r":1: expected a list of labelme.*'_background_'"),
        ("__ignore__\ncat\n", r":2: expected a list of labelme.*found 'cat'"),
        ("# label:color_rgb:parts:actions\ncat:1,2::\n", r":2: expected 'label:red,green,blue"),
        ('[{"id": 1, "nam": "sky"}]', r"categories\[0\]: expected 'id' and 'name'"),
        ('[{"id": -1, "name": "sky"}]', r"categories\[0\]: expected a label value, .* found -1"),
        ('{"sky": 1, "sea": 1}', r"two names have the same value"),
        ('{"labels": [{"readable": "Bird"}]}', r"labels\[0\]: expected 'readable' and 'color'"),
        ('{"classes": ["sky"]}', r"classes\[0\]: expected 'title' and a 'color' such as #ff0000"),
        ('{"sky": [1, 2, 3], "sea": [1, 2]}', r"\['sky'\]: expected a label value"),
        ('{"categories": 3}', r"expected a list of categories, found 3"),
        ('["sky", 3]', r"\[1\]: expected a class name, found 3"),
        ('["sky", ', r"list.txt: begins like JSON, but"),
        ("nc: 3\nnames: [sky, sea]\n", r"names: expected nc=3 names, found 2"),
        ("names: sky\n", r"names: expected a list of names, found 'sky'"),
        ("names: [sky\n", r"has names: like YAML, but"),
        ("names:\n" + 300 * f"- {300 * '['}{300 * ']'}\n", r"at most 32 brackets inside each"),
        ("0: sky\n70000: sea\n", r":2: label value 70000 of class 'sea' is larger"),
        ("1: sky\n1: sea\n", r":2: label value 1 already belongs to class 'sky'"),
        (COCO_CATEGORIES.replace("car", "person"), r"categories\[1\]: class 'person' is already"),
    ],
)  # fmt: skip
def test_lists_that_are_not_certain_are_refused_by_line(text, message):
    with pytest.raises(ValueError, match=message) as refusal:
        read(text)
    assert str(refusal.value).startswith("list.txt")


def test_list_of_colours_has_names_and_no_label_values():
    cvat = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nred car:250,0,7::wheel,door\n"
    camvid = "0 0 0\tbackground\n250 0 7\tred car\n"
    table = "name,r,g,b\nbackground,0,0,0\nred car,250,0,7\n"
    supervisely = (
        '{"background": [0, 0, 0], "red car": [250, 0, 7]}',
        '{"classes": [{"title": "background", "shape": "bitmap", "color": "#000000"},'
        ' {"title": "red car", "shape": "bitmap", "color": "#FA0007"}], "tags": []}',
    )
    lines = (cvat, cvat.partition("\n")[2], table, camvid, f"# color_rgb label\n{camvid}")
    for text in (*lines, *supervisely):
        classes = parse_class_list(text.encode(), "labelmap.txt")
        assert classes.names == ("background", "red car")
        assert classes.colors == ((0, 0, 0), (250, 0, 7))
        assert classes.label_values == ()


def test_colours_of_what_is_no_class_are_ignored():
    text = "background:0,0,0::\ncar:1,2,3::\nignored:224,224,192::\nvoid:0,0,9::\n"
    classes = parse_class_list(text.encode(), "labelmap.txt")
    assert classes.names == ("background", "car") and classes.colors == ((0, 0, 0), (1, 2, 3))
    assert classes.ignored_colors == ((224, 224, 192), (0, 0, 9))


def test_list_of_values_and_colours_has_both_unless_classes_share_a_colour():
    text = "id,name,r,g,b\n7,road,128,64,128\n8,sidewalk,244,35,232\n255,void,0,0,0\n"
    classes = parse_class_list(text.encode(), "labels.csv")
    assert classes.label_values == (7, 8) and classes.values_are_given
    assert classes.colors == ((128, 64, 128), (244, 35, 232))
    assert classes.ignored_colors == ((0, 0, 0),)
    shared = text.replace("244,35,232", "128,64,128")
    assert parse_class_list(shared.encode(), "labels.csv").colors == ()
    assert not parse_class_list(b"cat\ndog\n", "classes.txt").values_are_given


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# label:color_rgb:parts:actions\ncat:1,2,3::\n", "1 classes of list.txt, colours -> cl"),
        ("cat\ndog\n", "2 classes of list.txt, names in the order of their label values, from 0"),
        ("0: cat\n255: void\n", "1 classes of list.txt, lines of 'number: name'; ignored: 255 'v"),
        ("id,name\n1,cat\n", "1 classes of list.txt, columns 'id' -> 'name'"),
    ],
)  # fmt: skip
def test_what_a_list_was_taken_for_is_said_in_a_line(caplog, text, line):
    with caplog.at_level(logging.INFO):
        parse_class_list(text.encode(), "list.txt")
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(line)


@pytest.mark.parametrize("name", ["void", "Ignore", "unlabeled", "border"])
def test_line_that_says_itself_that_its_value_is_ignored_is_no_class(name):
    assert read(f"0\tcat\n255\t{name}\n") == {0: "cat"}


def test_line_of_a_value_that_is_ignored_by_default_makes_it_a_class():
    assert read("0\tbackground\n255\tlesion\n") == {0: "background", 255: "lesion"}
    assert read("255: background\n0: lesion\n") == {255: "background", 0: "lesion"}
    assert read('{"categories": [{"id": 255, "name": "sea"}]}') == {255: "sea"}


def test_line_that_contradicts_ignore_labels_of_the_user_is_refused():
    with pytest.raises(ValueError, match=r"list.txt:2: label value 9 is class 'lesion' here, but "):
        read("0\tcat\n9\tlesion\n", ignore_labels=(9, 255))
    assert read("0\tbackground\n9\tlesion\n", ignore_labels=(0, 255)) == {9: "lesion"}


def test_names_alone_that_reach_an_ignored_value_are_refused():
    with pytest.raises(ValueError, match=r":256: class 'x 255' falls on label value 255, which is"):
        read("\n".join(f"x {i}" for i in range(300)))


def test_line_of_several_names_goes_by_its_first_and_keeps_the_others():
    text = "0:invalid_class_id\n1:person,child, girl,child\n2:sky\n12:invalid_class_id\n"
    classes = parse_class_list(text.encode(), "fcclip.txt")
    assert classes.names == ("person", "sky") and classes.label_values == (1, 2)
    assert classes.synonyms == (("child", "girl"), ())
    assert classes.further_names == {"person": ("child", "girl")}
    assert classes.ignored_values == (0, 12, 255)
    assert parse_class_list(b"0: cat\n1: dog\n", "list.txt").synonyms == ()


@pytest.mark.parametrize(
    "text",
    [
        "0\tinvalid_class_id\n1\tcat\n",
        "0,invalid_class_id\n1,cat\n",
        '{"categories": [{"id": 0, "name": "invalid_class_id"}, {"id": 1, "name": "cat"}]}',
    ],
)
def test_values_that_are_not_used_are_no_classes_in_any_format(text):
    classes = parse_class_list(text.encode(), "list.txt")
    assert classes.names == ("cat",) and classes.ignored_values == (0, 255)


def test_classes_that_share_their_first_name_go_by_one_of_their_own():
    text = "115:bag,bags\n192:bag,traveling bag\n175:pier,wharf\n256:pier\n131:pot,pan\n132:pan\n"
    classes = parse_class_list(text.encode(), "ade20k_847_with_prompt_eng.txt")
    assert classes.names == ("bags", "traveling bag", "wharf", "pier", "pot", "pan")
    assert classes.synonyms == (("bag",), ("bag",), ("pier",), (), ("pan",), ())


def test_values_of_unlabelled_pixels_are_those_that_the_list_leaves():
    assert parse_class_list(b"0\tcat\n255\tlesion\n", "x").ignored_values == ()
    assert parse_class_list(b"0\tcat\n1\tlesion\n", "x").ignored_values == (255,)
    assert parse_class_list(b"0\tcat\n3\tdog\n", "x", (9, 7)).ignored_values == (7, 9)


def test_ignore_value_that_is_given_contradicts_a_class_even_where_it_is_the_default():
    with pytest.raises(ValueError, match=r":2: label value 255 is class 'lesion' here, but ign"):
        read("0\tcat\n255\tlesion\n", ignore_labels=(255,))


@pytest.mark.parametrize(
    "text",
    [
        "1\tcat\tthing\n3\tsky\tstuff\n4\tdog bed\tThing\n",
        "id,name,isthing\n1,cat,1\n3,sky,0\n4,dog bed,1\n",
        "name\tid\tthing\ncat\t1\ttrue\nsky\t3\tfalse\ndog bed\t4\ttrue\n",
        '[{"id": 1, "name": "cat", "isthing": 1}, {"id": 3, "name": "sky", "isthing": 0}, '
        '{"id": 4, "name": "dog bed", "isthing": 1}]',
    ],
)
def test_list_may_say_which_classes_are_things(text):
    classes = parse_class_list(text.encode(), "list.txt")
    assert (classes.names, classes.label_values) == (("cat", "sky", "dog bed"), (1, 3, 4))
    assert classes.things == (0, 2)


@pytest.mark.parametrize(
    "text",
    [
        "1\tcat\n3\tsky\n",
        '[{"id": 1, "name": "cat", "isthing": 1}, {"id": 3, "name": "sky"}]',
    ],
)
def test_list_that_does_not_say_it_of_every_class_says_nothing_of_things(text):
    assert parse_class_list(text.encode(), "list.txt").things is None


@pytest.mark.parametrize(
    "text",
    [
        "id,name,thing\n1,cat,1\n3,sky,no\n",
        '[{"id": 1, "name": "cat", "isthing": 1}, {"id": 3, "name": "sky", "isthing": "no"}]',
    ],
)
def test_words_that_are_neither_thing_nor_stuff_are_refused(text):
    with pytest.raises(ValueError, match=r"list.txt.*expected one of thing, stuff, 1, 0, .*'no'"):
        parse_class_list(text.encode(), "list.txt")


def test_last_column_is_of_all_lines_or_of_none():
    with pytest.raises(ValueError, match=r"list.txt:2: .*all lines or of none"):
        read("1\tcat\tthing\n3\tsky\n")
    with pytest.raises(ValueError, match="more columns"):
        read("1\tcat\tanimal\n3\tsky\tstuff\n")
    assert parse_class_list(b"0\tvoid\tstuff\n1\tcat\tthing\n", "x", (0,)).things == (0,)
