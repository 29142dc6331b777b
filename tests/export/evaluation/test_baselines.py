import cv2
import numpy as np
import pytest
from iog.prompt import Box, Click, Point, Prompt
from iog_export.evaluation.baselines import BASELINES, ellipse, filled_box, grabcut
from iog_export.evaluation.overlap import iou


@pytest.fixture
def scene():
    """A red disc on a green ground with a blue patch in its box, and the disc."""
    disc, patch = np.zeros((120, 160), np.uint8), np.zeros((120, 160), np.uint8)
    cv2.circle(disc, (80, 60), 35, (1,), -1)
    cv2.circle(patch, (105, 85), 9, (1,), -1)
    pixels = np.random.default_rng(0).integers(0, 50, (120, 160, 3)).astype(np.uint8)
    pixels[..., 1] += 90
    pixels[disc > 0] += np.array([150, 0, 0], np.uint8)
    pixels[patch > 0] = (20, 20, 220)
    return pixels, disc > 0, patch > 0


PROMPT = Prompt(Box(42, 22, 118, 98), Point(80, 60))


def test_grabcut_masks_an_easy_object(scene):
    pixels, disc, patch = scene
    assert iou(grabcut(pixels, PROMPT), disc & ~patch, ~patch) > 0.9


def test_grabcut_obeys_clicks(scene):
    for positive in (True, False):
        mask = grabcut(scene[0], Prompt(PROMPT.box, PROMPT.inside, (Click(105, 85, positive),)))
        assert (mask[84:87, 104:107] == positive).all()


def test_grabcut_gives_the_same_mask_again(scene):
    assert (grabcut(scene[0], PROMPT) == grabcut(scene[0], PROMPT)).all()


def test_grabcut_takes_a_box_of_the_whole_image(scene):
    pixels, disc, _ = scene
    mask = grabcut(pixels, Prompt(Box(0, 0, 159, 119), Point(80, 60)))
    assert mask[disc].mean() > 0.8
    assert not mask[0].any()


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_stay_in_the_box_and_cover_the_inside_point(name, scene):
    mask = BASELINES[name](scene[0], PROMPT)
    assert mask.shape == (120, 160)
    assert mask.dtype == np.bool_
    assert mask[60, 80]
    mask[22:99, 42:119] = False
    assert not mask.any()


def test_ellipse_is_the_better_mask_of_a_disc(scene):
    pixels, disc, _ = scene
    everywhere = np.ones_like(disc)
    box, oval = (iou(baseline(pixels, PROMPT), disc, everywhere) for baseline in (filled_box, ellipse))
    assert 0.6 < box < oval < 1
