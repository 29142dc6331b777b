import itertools
from dataclasses import replace

import numpy as np
import pytest
from iog.prompt import Box
from iog_export.evaluation.data import read_photograph, targets_of
from iog_export.evaluation.measure import BASELINE_CLICKS, Bench, annotate, clicks_to, conditions, opening
from iog_export.evaluation.objects import find_objects
from iog_export.evaluation.protocol import Protocol

TRUTH = np.zeros((40, 60), bool)
TRUTH[10:30, 10:50] = True  # 20 rows of 40: 800 pixels


class Scripted:
    """Covers these shares of TRUTH, in columns, one after the other; then the last one again and again."""

    def __init__(self, *shares):
        self._shares = itertools.chain(shares, itertools.repeat(shares[-1]))
        self.prompts = []

    def __call__(self, pixels, prompt):
        self.prompts.append(prompt)
        mask = TRUTH.copy()
        mask[:, 10 + round(40 * next(self._shares)) :] = False
        return mask


def track(target, *shares, clicks=20):
    segment = Scripted(*shares)
    found = target(TRUTH)
    return annotate(segment, found, opening(found, Protocol()), clicks), segment


def test_ious_and_clicks_to_goals_are_those_of_the_masks_seen(target):
    found, segment = track(target, 0.5, 0.75, 0.8, 0.85, 0.8, 0.85, 0.875, 0.925, 1.0)
    # 0.9 is reached with the tenth click, after the eighth: there it ends
    assert found.ious == (0.5, 0.75, 0.8, 0.85, 0.8, 0.85, 0.875, 0.925)
    assert clicks_to(found, 0.85) == 6
    assert clicks_to(found, 0.90) == 10
    assert len(segment.prompts) == 8
    assert len(found.boundary_ious) == 8


def test_all_reported_masks_are_seen_though_the_goals_were_reached_before(target):
    found, segment = track(target, 0.95, 0.5, 0.6, 0.7, 0.8, 0.85)
    assert len(segment.prompts) == 6  # 3 .. 8 clicks
    assert found.ious[-1] == 0.85
    assert clicks_to(found, 0.90) == 3


def test_a_goal_never_reached_takes_all_clicks(target):
    found, segment = track(target, 0.5)
    assert len(found.ious) == len(segment.prompts) == 18
    assert clicks_to(found, 0.85) is None


def test_perfect_masks_get_no_clicks(target):
    found, segment = track(target, 0.5, 1.0)
    assert len(segment.prompts) == 2
    assert len(found.clicks) == 1
    assert found.ious == (0.5, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert found.boundary_ious[1:] == (1.0,) * 5


def test_three_clicks_are_one_mask(target):
    found, segment = track(target, 0.5, 1.0, clicks=3)
    assert found.ious == (0.5,)
    assert found.clicks == ()
    assert len(segment.prompts) == 1


def test_no_pixel_is_clicked_twice_though_the_segmenter_does_not_listen(target):
    found, _ = track(target, 0.5)
    assert len(set(found.clicks)) == len(found.clicks) == 17
    assert all(positive and TRUTH[int(y), int(x)] and x >= 30 for x, y, positive in found.clicks)


def test_clicks_correct_the_mask_just_seen(target):
    _, segment = track(target, 0.5, 0.75, 0.8, clicks=5)
    first, second, third = segment.prompts
    assert (first.box, first.inside) == (Box(8, 9, 51, 30), first.inside)
    assert [len(p.clicks) for p in segment.prompts] == [0, 1, 2]
    assert 30 <= second.clicks[0].x < 50
    assert third.clicks[0] == second.clicks[0]
    assert 40 <= third.clicks[1].x < 50


def test_void_pixels_count_nowhere(target):
    void = np.zeros_like(TRUTH)
    void[:, 30:] = True
    found = target(TRUTH, void)
    half = annotate(Scripted(0.5), found, opening(found, Protocol()), 20)
    assert half.ious == (1.0,) * 6
    assert half.clicks == ()


def test_moved_inside_points_depend_on_object_and_seed_alone(album):
    one, other = targets_of(read_photograph(album, "discs/0"), 1)
    protocol = Protocol(inside_radius=60)
    assert opening(one, protocol) == opening(one, protocol)
    assert opening(one, protocol) != opening(one, replace(protocol, seed=1))
    inside = opening(other, protocol).inside
    assert other.mask[int(inside.y), int(inside.x)]
    assert inside != opening(other, Protocol()).inside


def test_sweep_varies_one_thing_at_a_time():
    base = Protocol(looseness=0.05, clicks=20)
    found = conditions(base)
    assert all(p.clicks == 3 for p in found.values())
    assert [p.looseness for p in found.values()] == [0, 0.05, 0.1, 0.15, 0.2, 0.05]
    assert [p.inside_radius for p in found.values()] == [0, 0, 0, 0, 0, 30]


def oracle(album):
    """Finds the object at the inside point, at 20 % looser boxes half of it."""
    photographs = [read_photograph(album, f"discs/{i}") for i in range(3)]

    def segment(pixels, prompt):
        labels = next(p.labels for p in photographs if (p.pixels == pixels).all())
        mask = labels == labels[int(prompt.inside.y), int(prompt.inside.x)]
        x0, _, x1, _ = prompt.box.pixels
        if x1 - x0 > 1.3 * np.ptp(np.nonzero(mask)[1]):
            mask[:, int(prompt.inside.x) :] = False
        return mask

    return segment


def test_a_record_holds_every_segmenter_and_condition(album, settings):
    items = find_objects(album, ["discs/0"]).items
    seen = []

    def empty(pixels, prompt):
        seen.append(prompt)
        return np.zeros(pixels.shape[:2], bool)

    bench = Bench(album, settings(sweep=True), {"model": oracle(album), "nothing": empty})
    record = bench.measure(items[0])
    assert (record.name, record.id, record.area, record.errors) == ("discs/0", 1, items[0].area, {})
    assert record.tracks["model"].ious == (1.0,) * 6
    assert record.tracks["nothing"].ious == (0.0,) * (BASELINE_CLICKS - 2)
    assert seen[-1] == record.prompt("nothing", BASELINE_CLICKS)
    assert seen[0] == record.prompt("nothing", 3)
    assert list(record.sweep) == list(conditions(settings().protocol))
    assert record.sweep["box 15 % loose"] == 1.0
    assert record.sweep["box 20 % loose"] == pytest.approx(0.5, abs=0.05)


def test_an_exception_is_noted_and_the_others_go_on(album, settings):
    def broken(pixels, prompt):
        if prompt.clicks:
            raise RuntimeError("out of paper")
        return np.zeros(pixels.shape[:2], bool)

    (item, *_) = find_objects(album, ["discs/0"]).items
    record = Bench(album, settings(), {"model": broken, "oracle": oracle(album)}).measure(item)
    assert record.errors == {"model": "RuntimeError: out of paper"}
    assert list(record.tracks) == ["oracle"]
