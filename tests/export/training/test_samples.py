import numpy as np
import torch
from iog_export.training import augment
from iog_export.training.data import DataSet, Photograph, Target
from iog_export.training.samples import Batches, Geometry, Stage, prompted


def target_of(labels, pixels=None):
    pixels = np.full((*labels.shape, 3), 200, np.uint8) if pixels is None else pixels
    ys, xs = np.nonzero(labels == 1)
    bounds = (int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1)
    return Target(Photograph("shapes/one", pixels, labels), 1, bounds, int((labels == 1).sum()))


def test_geometry_at_another_size_sees_the_same_share_of_the_crop(geometry: Geometry):
    doubled = geometry.at(128)
    assert (doubled.crop.size, doubled.guidance.size, doubled.guidance.fwhm) == (128, 128, 2.5)
    assert doubled.crop.relax_fraction == geometry.crop.relax_fraction
    assert doubled.at(64) == geometry


def test_scenes_keep_pixels_and_mask_together():
    labels = np.zeros((100, 140), np.uint8)
    labels[30:70, 40:100] = 1
    pixels = np.full((100, 140, 3), 40, np.uint8)
    pixels[labels == 1] = 220
    for seed in range(20):
        scene = augment.scene(target_of(labels, pixels), 64, np.random.default_rng(seed))
        bright = scene.pixels[:, :, 0] > 130
        assert (bright != scene.target).mean() < 0.02
        assert (scene.pixels[~scene.inside].max(initial=0)) <= 220
        assert not scene.known[~scene.inside].any()


def test_void_and_what_lies_outside_the_photograph_is_unknown():
    labels = np.zeros((60, 60), np.uint8)
    labels[:, :30], labels[:20, 40:] = 1, 255
    scene = augment.scene(target_of(labels), 64, np.random.default_rng(3))
    assert not scene.known[~scene.inside].any()
    assert not scene.known.all()
    assert not (scene.target & ~scene.known & scene.inside).sum() > 0.05 * scene.target.sum()


def test_occluder_hides_at_most_half_of_the_target(shapes):
    targets = DataSet.read(*shapes).targets
    changed = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = augment.scene(targets[0], 64, rng)
        covered = augment.occluded(scene, augment.scene(targets[1], 64, rng), rng)
        assert not (covered.target & ~scene.target).any()
        assert covered.target.sum() >= 0.5 * scene.target.sum()
        changed += bool((covered.pixels != scene.pixels).any())
    assert changed


def test_transplanted_target_keeps_its_pixels(shapes):
    targets = DataSet.read(*shapes).targets
    rng = np.random.default_rng(0)
    scene, back = augment.scene(targets[0], 64, rng), augment.scene(targets[1], 64, rng)
    moved = augment.transplanted(scene, back)
    core = scene.target.copy()
    core[1:, :] &= scene.target[:-1, :]
    core[:-1, :] &= scene.target[1:, :]
    core[:, 1:] &= scene.target[:, :-1]
    core[:, :-1] &= scene.target[:, 1:]
    deep = core[1:-1, 1:-1] & core[:-2, 1:-1] & core[2:, 1:-1] & core[1:-1, :-2] & core[1:-1, 2:]
    assert (moved.pixels[1:-1, 1:-1][deep] == scene.pixels[1:-1, 1:-1][deep]).all()
    assert moved.known.all()


def test_recolouring_leaves_the_padding_black():
    inside = np.zeros((64, 64), bool)
    inside[:, 20:] = True
    crop = np.full((64, 64, 3), 90, np.uint8) * inside[:, :, None]
    for seed in range(20):
        assert not augment.recoloured(crop, inside, np.random.default_rng(seed))[~inside].any()


def test_samples_are_clicked_inside_the_target_and_cornered_around_it(shapes, geometry: Geometry):
    targets = DataSet.read(*shapes).targets
    for seed in range(30):
        rng = np.random.default_rng(seed)
        sample = prompted(augment.scene(targets[seed % 8], 64, rng), geometry, rng)
        assert sample is not None
        foreground, background = sample.inputs[3], sample.inputs[4]
        y, x = np.unravel_index(int(foreground.argmax()), foreground.shape)
        assert foreground.max() == 255
        assert sample.target[y, x]
        ys, xs = np.nonzero(background == 255)
        assert len(ys) == 4
        within = sample.target[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        assert within.sum() > 0.85 * sample.target.sum()


def test_batches_follow_the_shared_stage_and_the_seed(shapes, geometry: Geometry):
    targets = DataSet.read(*shapes).targets
    current = torch.tensor(0)
    stages = (Stage(64, 3), Stage(96, 2))
    batches, again = (iter(Batches(targets, geometry, stages, current, seed=1)) for _ in range(2))
    first, same = next(batches), next(again)
    assert first.inputs.shape == (3, 5, 64, 64)
    assert first.target.shape == first.known.shape == (3, 1, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    current.fill_(1)
    assert next(batches).inputs.shape == (2, 5, 96, 96)
