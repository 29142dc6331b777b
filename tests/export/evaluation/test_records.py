import pytest
from iog.errors import IogError
from iog_export.evaluation.records import Record, Results, Track


def record(id, iou=0.5):
    return Record(
        name="discs/0",
        id=id,
        area=100,
        fill=1 / 3,
        box=(0, 0, 9, 9),
        inside=(5, 5),
        tracks={"model": Track(clicks=((1.0, 2.0, True),), ious=(iou, 0.1 + 0.2), boundary_ious=(0.0, 1.0))},
        sweep={"box 5 % loose": 0.1},
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.jsonl"


def test_results_go_on_where_they_were_stopped(path, settings):
    with Results(path, settings()) as results:
        results.add(record(1))
    with Results(path, settings()) as results:
        assert results.records == {("discs/0", 1): record(1)}
        results.add(record(2))
    with Results(path, settings()) as results:
        assert list(results.records.values()) == [record(1), record(2)]
    assert len(path.read_bytes().splitlines()) == 3


def test_records_are_in_the_file_before_the_next_one_is_measured(path, settings):
    with Results(path, settings()) as results:
        results.add(record(1))
        assert len(path.read_bytes().splitlines()) == 2


def test_the_later_record_of_an_object_counts(path, settings):
    with Results(path, settings()) as results:
        results.add(record(1))
        results.add(record(1, 0.9))
    with Results(path, settings()) as results:
        assert list(results.records.values()) == [record(1, 0.9)]


@pytest.mark.parametrize("cut", [1, 30, 10_000])
def test_a_line_cut_short_is_dropped(path, settings, cut):
    with Results(path, settings()) as results:
        results.add(record(1))
    path.write_bytes(path.read_bytes()[:-cut])
    with Results(path, settings()) as results:
        assert results.records == {}
        results.add(record(2))
    with Results(path, settings()) as results:
        assert list(results.records.values()) == [record(2)]


def test_other_settings_are_refused_with_the_difference(path, settings):
    with Results(path, settings()):
        pass
    before = path.read_bytes()
    with pytest.raises(IogError, match=r"looseness 0.05 \(now 0.1\), sweep False \(now True\); choose another --out"):
        Results(path, settings(looseness=0.1, sweep=True))
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["no json\n", "[1, 2]\n", '{"a": 1}\n', '[{"my": "only copy"}]', '{"a": 1}'])
def test_other_files_are_refused(path, settings, content):
    path.write_text(content)
    with pytest.raises(IogError, match="something else"):
        Results(path, settings())
    assert path.read_text() == content


def test_a_damaged_line_is_named(path, settings):
    with Results(path, settings()) as results:
        results.add(record(1))
    path.write_bytes(path.read_bytes() + b'{"name": 3}\n')
    with pytest.raises(IogError, match="line 3 is damaged"):
        Results(path, settings())
