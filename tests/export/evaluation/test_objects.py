import pytest
from iog_export.evaluation.data import DataError, read_list
from iog_export.evaluation.objects import digest_of, find_objects


def test_objects_are_found_in_the_order_of_the_list(album):
    found = find_objects(album, read_list(album / "val.txt"))
    assert [(i.name, i.id) for i in found.items][:4] == [("discs/0", 1), ("discs/0", 7), ("discs/1", 1), ("discs/1", 7)]
    assert len(found.items) == 10
    assert found.skipped == {}


def test_unusable_photographs_are_named_with_the_reason(album):
    (album / "discs" / "images" / "1.jpg").write_bytes(b"no image")
    found = find_objects(album, ["discs/0", "discs/1", "discs/9", "discs/0"])
    assert {i.name for i in found.items} == {"discs/0"}
    assert len(found.items) == 2
    assert list(found.skipped) == ["discs/1", "discs/9"]
    assert "No such file" in found.skipped["discs/9"]


def test_nothing_to_measure_is_an_error_with_the_first_reason(album):
    with pytest.raises(DataError, match=r"1 listed photographs, 1 of which are unusable.*nothing/0: .*No such file"):
        find_objects(album, ["nothing/0"])
    with pytest.raises(DataError, match="at least 100000 pixels"):
        find_objects(album, ["discs/0"], min_area=100_000)


def test_digest_names_the_selection(album):
    items = find_objects(album, ["discs/0", "bars/0"]).items
    assert digest_of(items) == digest_of(list(items)) != digest_of(items[:-1])
