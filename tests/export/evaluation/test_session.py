import itertools

import numpy as np
from iog.prompt import Box
from iog_export.evaluation.protocol import Protocol
from iog_export.evaluation.session import MODEL, annotate, annotated, clicks_to

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
    return annotate(segment, found, Protocol().opening(found), clicks), segment


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
    half = annotate(Scripted(0.5), found, Protocol().opening(found), 20)
    assert half.ious == (1.0,) * 6
    assert half.clicks == ()


def test_annotated_objects_are_records_of_the_model(target):
    found = target(TRUTH)
    (record,) = annotated(Scripted(0.5, 0.75, 0.8), [found], Protocol(clicks=5))
    assert (record.key, record.area, record.fill) == (("set/photo", 1), 800, 1.0)
    assert record.tracks[MODEL].ious == (0.5, 0.75, 0.8)
    assert record.prompt(MODEL, 3) == Protocol().opening(found)
