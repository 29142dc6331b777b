import pytest
from iog_export.datasets import DataError, Item
from iog_export.evaluation.objects import digest_of, representative, spread, uncounted


def test_small_objects_of_coco_do_not_count_and_are_counted():
    items = [Item("coco/1", 1, (0, 0, 99, 99), 4095), Item("coco/1", 2, (0, 0, 99, 99), 4096)]
    other = Item("ecssd/1", 1, (0, 0, 5, 5), 10)
    assert representative([*items, other]) == [items[1], other]
    assert uncounted([*items, other]) == ["1 objects of coco have under 64x64 pixels and do not count"]
    assert uncounted([other]) == []
    with pytest.raises(DataError, match="none of the 1 objects of coco has at least 64x64 pixels"):
        representative(items[:1])


def test_spread_takes_the_ends_and_no_more_than_there_are():
    items = [Item("set/photo", i, (0, 0, 1, 1), 1) for i in range(8)]
    assert spread(items, 3) == [items[0], items[4], items[7]]
    assert spread(items, 20) == items


def test_digest_names_the_selection(data):
    assert digest_of(data.items) == digest_of(list(data)[i].item for i in range(10)) != digest_of(data.items[:-1])
