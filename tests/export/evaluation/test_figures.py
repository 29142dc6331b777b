import pytest
from iog_export.evaluation.figures import (
    by_fill,
    by_set,
    by_size,
    figures,
    mean_curve,
    reached_curve,
    setbacks,
    sweep_means,
)
from iog_export.evaluation.records import Record, Track


def record(name, ious, *, area=100, fill=0.5, errors=None, sweep=None):
    track = Track(clicks=(), ious=ious, boundary_ious=tuple(i / 2 for i in ious))
    return Record(
        name=name,
        id=1,
        area=area,
        fill=fill,
        box=(0, 0, 9, 9),
        inside=(5, 5),
        tracks={} if errors else {"model": track},
        errors=errors or {},
        sweep=sweep or {},
    )


QUICK = record("a/1", (0.92, 0.9, 0.9, 0.9, 0.9, 0.94), area=32**2, fill=0.35, sweep={"loose": 0.8})
SLOW = record("b/1", (0.4, 0.5, 0.6, 0.7, 0.8, 0.84, 0.86, 0.9), area=96**2, fill=0.55, sweep={"loose": 0.6})
NEVER = record("b/2", (0.2,) * 18, area=32**2 - 1, fill=0.349)
FAILED = record("b/3", (), errors={"model": "RuntimeError: no"})
RECORDS = [QUICK, SLOW, NEVER, FAILED]


def test_means_by_hand():
    found = figures(RECORDS, "model", 20, goals=True)
    assert (found.objects, found.failed) == (3, 1)
    assert found.iou == pytest.approx({3: 1.52 / 3, 4: 1.6 / 3, 5: 1.7 / 3, 8: 1.98 / 3})
    assert found.boundary_iou[8] == pytest.approx(0.99 / 3)
    assert found.below_half == pytest.approx({3: 2 / 3, 4: 1 / 3, 5: 1 / 3, 8: 1 / 3})
    assert found.clicks_to == pytest.approx({0.85: (3 + 9 + 20) / 3, 0.9: (3 + 10 + 20) / 3})
    assert found.not_reached == pytest.approx({0.85: 1 / 3, 0.9: 1 / 3})


def test_standard_error_is_that_of_the_mean():
    pair = [record("a/1", (0.5,)), record("a/2", (0.7,))]
    assert figures(pair, "model", 3, goals=True).standard_error == pytest.approx({3: 0.1})
    assert figures(pair[:1], "model", 3, goals=True).standard_error == {}


def test_fewer_clicks_have_fewer_figures():
    found = figures([record("a/1", (0.5, 0.6))], "model", 4, goals=False)
    assert list(found.iou) == [3, 4]
    assert found.clicks_to == found.not_reached == {}


def test_nothing_measured_has_no_means():
    found = figures([FAILED], "model", 20, goals=True)
    assert (found.objects, found.failed, found.iou, found.clicks_to) == (0, 1, {}, {})


def test_groups():
    assert {name: len(members) for name, members in by_set(RECORDS).items()} == {"all": 4, "a": 1, "b": 3}
    assert list(by_set([QUICK])) == ["a"]
    named = record("all/1", (0.5,))
    assert by_set([named]) == {"all": [named]}
    assert by_set([named, SLOW]) == {"all": [named, SLOW], "set all": [named], "b": [SLOW]}
    assert by_size(RECORDS)["32x32 to 96x96 px"] == [QUICK]
    assert by_size(RECORDS)["from 96x96 px"] == [SLOW]
    assert by_fill(RECORDS[:3]) == {"under 0.35": [NEVER], "0.35 to 0.55": [QUICK], "from 0.55": [SLOW]}


def test_curves_go_as_far_as_all_objects_were_clicked():
    assert mean_curve(RECORDS, "model") == pytest.approx(
        {3: 1.52 / 3, 4: 1.6 / 3, 5: 1.7 / 3, 6: 1.8 / 3, 7: 1.9 / 3, 8: 1.98 / 3}
    )
    assert mean_curve(RECORDS, "other") == {}
    reached = reached_curve(RECORDS, "model", 0.9, 20)
    assert (len(reached), reached[3], reached[9], reached[10], reached[20]) == pytest.approx(
        (18, *[1 / 3] * 2, *[2 / 3] * 2)
    )


def test_sweep_means_are_over_the_objects_measured_so():
    assert sweep_means(RECORDS, ["loose", "tight"]) == pytest.approx({"loose": 0.7})


def test_setbacks_are_further_clicks_that_lower_a_mean():
    assert setbacks([QUICK], "model") == pytest.approx({4: 0.02})
    assert setbacks([SLOW, NEVER], "model") == {}
    assert setbacks(RECORDS, "model") == {}
    done, spoiled = record("a/1", (0.9,) * 6), record("a/2", (0.5,) * 8 + (0.4, 0.6, 0.58))
    assert setbacks([done, spoiled], "model") == pytest.approx({11: 0.05, 13: 0.01})  # the other one keeps its mask
    assert setbacks([FAILED], "model") == {}
