import pytest

from input_pipeline.class_lists import BUILT_IN, load_class_list, parse_class_list


def _list(tmp_path, content):
    path = tmp_path / "classes.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "name, count, value, first",
    [
        ("ade20k_150", 150, 1, "wall"),
        ("ade20k_847", 847, 2978, "wall"),
        ("coco_stuff_171", 171, 0, "person"),
        ("pascal_context_459", 459, 0, "accordion"),
        ("pascal_context_59", 59, 0, "aeroplane"),
        ("shapes_world", 42, 0, "plain red shape"),
        ("voc_20", 20, 1, "aeroplane"),
    ],
)
def test_built_in_lists(name, count, value, first):
    classes = load_class_list(name, ignore_labels=(65535,))
    assert name in BUILT_IN
    assert (len(classes.names), classes.label_values[0], classes.names[0]) == (count, value, first)


def test_coco_stuff_values_skip_the_unused_ids():
    classes = load_class_list("coco_stuff_171")
    assert classes.label_values[-1] == 181
    assert classes.label_values[classes.names.index("stop sign")] == 12


def test_line_number_is_the_value_of_a_plain_name(tmp_path):
    classes = load_class_list(_list(tmp_path, "cat\ndog\n"))
    assert classes.names == ("cat", "dog")
    assert classes.label_values == (0, 1)


def test_byte_order_mark_and_windows_line_ends_are_tolerated(tmp_path):
    classes = load_class_list(_list(tmp_path, b"\xef\xbb\xbf7\tcat\r\n9\tpotted plant\r\n\r\n"))
    assert classes.names == ("cat", "potted plant")
    assert classes.label_values == (7, 9)


def test_ignored_value_is_not_a_class(tmp_path):
    assert load_class_list(_list(tmp_path, "0\tcat\n255\tborder\n")).names == ("cat",)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "the file is empty"),
        ("255\tignore\n", "found no class"),
        ("cat\ndog\ncat\n", r":3: class 'cat' is already listed with label value 0"),
        ("1\tcat\n1\tdog\n", r":2: label value 1 already belongs to class 'cat'"),
        ("cat\n\ndog\n", ":2: the class name is blank"),
        ("0\tcat\n1\t \n2\tdog\n", ":2: the class name is blank"),
        ("0\tcat\ndog\n", r":2: expected 'integer<TAB>name' as on line 1, found 'dog'"),
        ("\n".join(map(str, range(300))), "falls on label value 255, which is ignored"),
        (b"caf\xe9\n", "expected UTF-8"),
    ],
)
def test_ambiguous_files_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_class_list(_list(tmp_path, content))


def test_missing_file_error_lists_built_in_names():
    with pytest.raises(ValueError, match=r"no such class list.*ade20k_150, .*coco_stuff_171, "):
        load_class_list("nowhere.txt")


def test_spaces_around_the_tab_are_tolerated(tmp_path):
    classes = load_class_list(_list(tmp_path, " 1 \twall\n22\t water\n"))
    assert classes.names == ("wall", "water") and classes.label_values == (1, 22)


def test_content_is_parsed_without_a_file():
    classes = parse_class_list(b"cat\rdog\r\ncow", "x.zip:classes.txt")
    assert classes.names == ("cat", "dog", "cow")
    with pytest.raises(ValueError, match=r"^x\.zip:classes\.txt:2: label value 1 already"):
        parse_class_list(b"1\tcat\n1\tdog", "x.zip:classes.txt")
