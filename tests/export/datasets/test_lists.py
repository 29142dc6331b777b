import pytest
from iog_export.datasets import DataError
from iog_export.datasets.lists import read_list


def test_blank_lines_comments_and_repetitions_are_left_out(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("# first\nshapes/0\n\n shapes/1 \nshapes/0\n")
    assert read_list(path, "<set>/NAME") == ["shapes/0", "shapes/1"]


def test_a_byte_order_mark_belongs_to_no_name(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("shapes/0\nshapes/1\n", encoding="utf-8-sig")
    assert read_list(path, "<set>/NAME") == ["shapes/0", "shapes/1"]


@pytest.mark.parametrize("content", [None, b"\n", b"\xff\xfe\x00"])
def test_missing_empty_and_other_files_are_an_error(tmp_path, content):
    path = tmp_path / "train.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="one <set>/NAME per line"):
        read_list(path, "<set>/NAME")
