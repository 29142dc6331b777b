import cv2
import numpy as np
import pytest
from iog_export.evaluation.overlap import boundary, boundary_iou, iou

EVERYWHERE = np.ones((300, 400), bool)  # of diagonal 500: boundaries reach 10 pixels


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((300, 400), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_boundary_is_two_percent_of_the_diagonal_wide():
    mask = rectangle(100, 50, 200, 150)
    assert (boundary(mask) == (mask & ~rectangle(110, 60, 190, 140))).all()


def test_objects_cut_by_the_image_have_a_boundary_there():
    mask = rectangle(0, 0, 400, 100)
    assert (boundary(mask) == (mask & ~rectangle(10, 10, 390, 90))).all()


def test_boundary_is_what_the_authors_compute():
    rng = np.random.default_rng(0)
    mask = cv2.GaussianBlur(rng.random((300, 400)).astype(np.float32), (0, 0), 15) > 0.5
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(0,))
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=10)[1:-1, 1:-1]
    assert (boundary(mask) == (mask.astype(np.uint8) - eroded)).all()


def test_boundary_iou_by_hand():
    truth, shifted = rectangle(100, 50, 200, 150), rectangle(105, 50, 205, 150)
    frame = 100 * 100 - 80 * 80
    # both frames in columns 105..200: top and bottom bands, and the parts of the sides that the shift leaves common
    common = 2 * 10 * 95 + 80 * (5 + 5)
    assert boundary_iou(shifted, truth, EVERYWHERE) == pytest.approx(common / (2 * frame - common))


def test_boundary_iou_sees_known_pixels_alone():
    truth, wrong_right = rectangle(100, 50, 200, 150), rectangle(100, 50, 300, 150)
    known = rectangle(0, 0, 180, 300)
    assert boundary_iou(wrong_right, truth, known) == 1.0
    assert boundary_iou(wrong_right, truth, EVERYWHERE) < 0.5


@pytest.mark.parametrize("grown", [0, 3, 6])
def test_outlines_anywhere_in_an_unknown_ring_are_the_same(grown):
    truth = rectangle(100, 50, 200, 150)
    known = ~rectangle(94, 44, 206, 156) | rectangle(106, 56, 194, 144)
    assert boundary_iou(rectangle(100 - grown, 50 - grown, 200 + grown, 150 + grown), truth, known) == 1.0
    assert boundary_iou(rectangle(80, 30, 220, 170), truth, known) < 0.7


def test_thin_objects_are_all_boundary():
    mask = rectangle(100, 50, 300, 65)
    assert (boundary(mask) == mask).all()
    assert boundary_iou(np.zeros_like(mask), mask, EVERYWHERE) == 0


def test_iou_counts_known_pixels_alone():
    mask, truth, known = np.zeros((3, 4, 4), bool)
    mask[:2], truth[1:3], known[:, :2] = True, True, True
    assert iou(mask, truth, known) == pytest.approx(2 / 6)
    assert iou(mask, truth, ~known & False) == 1.0
