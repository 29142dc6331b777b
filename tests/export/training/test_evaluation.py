import numpy as np
import pytest
from iog.prompt import Prompt
from iog_export.networks import IOG, NetworkSpec
from iog_export.training.data import DataSet, Photograph, Target
from iog_export.training.evaluation import (
    Protocol,
    ellipse,
    evaluate,
    fill_group,
    filled_box,
    iou,
    representative,
    spread,
    summarize,
    torch_segmenter,
)


class Obedient:
    """Starts from the box and obeys each click within five pixels."""

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []

    def __call__(self, pixels, prompt):
        self.prompts.append(prompt)
        mask = filled_box(pixels, prompt)
        for click in prompt.clicks:
            x, y = int(click.x), int(click.y)
            mask[max(y - 5, 0) : y + 6, max(x - 5, 0) : x + 6] = click.positive
        return mask


def test_each_click_answers_the_mask_just_seen(shapes):
    target = DataSet.read(*shapes).targets[0]
    segment = Obedient()
    (outcome,) = evaluate(segment, [target], Protocol(looseness=0.1, clicks=7))
    assert [len(p.clicks) for p in segment.prompts] == [0, 1, 2, 3, 4]
    assert len({p.box for p in segment.prompts}) == len({p.inside for p in segment.prompts}) == 1
    assert list(outcome.ious) == sorted(outcome.ious)
    assert outcome.ious[0] < outcome.ious[-1]
    assert (outcome.name, outcome.collection, outcome.area) == ("shapes/0", "shapes", target.area)


def test_perfect_masks_are_left_alone(shapes):
    targets = DataSet.read(*shapes).targets
    truths = iter([t.mask for t in targets for _ in range(3)])
    outcomes = evaluate(lambda pixels, prompt: next(truths), targets)
    assert all(o.ious == (1.0, 1.0, 1.0) for o in outcomes)


def test_moved_inside_points_are_on_the_object_and_repeat_with_the_seed(shapes):
    targets = DataSet.read(*shapes).targets
    seen = []
    for seed in (1, 1, 2):
        segment = Obedient()
        evaluate(segment, targets, Protocol(clicks=3, inside_radius=30, seed=seed))
        seen.append([p.inside for p in segment.prompts])
        assert all(t.mask[int(p.y), int(p.x)] for t, p in zip(targets, seen[-1], strict=True))
    assert seen[0] == seen[1] != seen[2]


def test_ellipse_is_the_better_baseline_for_ellipses(shapes):
    targets = DataSet.read(*shapes).targets
    box, oval = (summarize(evaluate(s, targets, Protocol(clicks=3)))["shapes"] for s in (filled_box, ellipse))
    assert box.objects == oval.objects == 8
    assert 0.3 < box.mean_iou[0] < oval.mean_iou[0] < 1


def test_iou_counts_known_pixels_alone():
    mask, truth, known = np.zeros((3, 4, 4), bool)
    mask[:2], truth[1:3], known[:, :2] = True, True, True
    assert iou(mask, truth, known) == pytest.approx(2 / 6)
    assert iou(mask, truth, ~known & False) == 1.0


def test_groups_by_fill_and_share_below_half(shapes):
    outcomes = evaluate(filled_box, DataSet.read(*shapes).targets, Protocol(clicks=3))
    by_fill = summarize(outcomes, fill_group)
    assert sum(s.objects for s in by_fill.values()) == 8
    assert all(name.startswith("shapes, fill") for name in by_fill)
    expected = np.mean([o.ious[0] < 0.5 for o in outcomes])
    assert summarize(outcomes)["shapes"].below_half == (pytest.approx(expected),)


def test_small_objects_of_coco_do_not_count():
    def target(collection, area):
        return Target(
            Photograph(f"{collection}/1", np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)),
            1,
            (0, 0, 1, 1),
            area,
        )

    kept = representative([target("coco", 4095), target("coco", 4096), target("ecssd", 10)])
    assert [(t.photograph.collection, t.area) for t in kept] == [("coco", 4096), ("ecssd", 10)]


def test_spread_takes_the_ends_and_no_more_than_there_are(shapes):
    targets = DataSet.read(*shapes).targets
    assert [targets.index(t) for t in spread(targets, 3)] == [0, 4, 7]
    assert spread(targets, 20) == list(targets)


def test_fewer_than_three_clicks_are_no_prompt():
    with pytest.raises(ValueError, match="2 clicks"):
        Protocol(clicks=2)


def test_torch_segmenter_encodes_once_per_object(shapes, geometry):
    network = IOG(NetworkSpec("resnet18", width=8, normalize=True))
    encoded = []
    encode = network.encode
    network.encode = lambda inputs: encoded.append(inputs.shape) or encode(inputs)  # type: ignore[method-assign]
    targets = DataSet.read(*shapes).targets[:2]
    outcomes = evaluate(torch_segmenter(network, geometry.crop, geometry.guidance), targets)
    assert encoded == [(1, 5, 64, 64)] * 2
    assert all(len(o.ious) == 3 for o in outcomes)
