import numpy as np
import pytest
from iog_export.evaluation.measure import BASELINE_CLICKS, REFERENCE, Bench, conditions
from iog_export.evaluation.protocol import Protocol


def test_sweep_varies_one_thing_at_a_time():
    found = conditions(Protocol(looseness=0.3, clicks=20))
    assert all(p.clicks == 3 for p in found.values())
    assert [p.looseness for p in found.values()] == [0, 0.05, 0.1, 0.15, 0.2, 0.05]
    assert [p.inside_radius for p in found.values()] == [0, 0, 0, 0, 0, 30]
    assert found[REFERENCE] == Protocol(clicks=3)


def oracle(data):
    """Finds the object at the inside point, at 20 % looser boxes half of it."""

    def segment(pixels, prompt):
        x, y = int(prompt.inside.x), int(prompt.inside.y)
        mask = next(t.mask for t in data if t.mask[y, x] and (t.photograph.pixels == pixels).all())
        x0, _, x1, _ = prompt.box.pixels
        if x1 - x0 > 1.3 * np.ptp(np.nonzero(mask)[1]):
            mask[:, int(prompt.inside.x) :] = False
        return mask

    return segment


def test_a_record_holds_every_segmenter_and_condition(data, settings):
    item = data.items[0]
    seen = []

    def empty(pixels, prompt):
        seen.append(prompt)
        return np.zeros(pixels.shape[:2], bool)

    bench = Bench(data, settings(sweep=True), {"model": oracle(data), "nothing": empty})
    record = bench.measure(item)
    assert (record.name, record.id, record.area, record.errors) == ("discs/0", 1, item.area, {})
    assert record.tracks["model"].ious == (1.0,) * 6
    assert record.tracks["nothing"].ious == (0.0,) * (BASELINE_CLICKS - 2)
    assert seen[-1] == record.prompt("nothing", BASELINE_CLICKS)
    assert seen[0] == record.prompt("nothing", 3)
    assert list(record.sweep) == list(conditions(settings().protocol))
    assert record.sweep["box 15 % loose"] == 1.0
    assert record.sweep["box 20 % loose"] == pytest.approx(0.5, abs=0.05)


def test_an_exception_is_noted_and_the_others_go_on(data, settings):
    def broken(pixels, prompt):
        if prompt.clicks:
            raise RuntimeError("out of paper")
        return np.zeros(pixels.shape[:2], bool)

    item = data.items[0]
    record = Bench(data, settings(), {"model": broken, "oracle": oracle(data)}).measure(item)
    assert record.errors == {"model": "RuntimeError: out of paper"}
    assert list(record.tracks) == ["oracle"]


def test_an_unreadable_photograph_is_noted(data, album, settings):
    image = album / "discs" / "images" / "0.jpg"
    image.write_bytes(image.read_bytes()[:-500])
    record = Bench(data, settings(), {"model": oracle(data)}).measure(data.items[0])
    assert record.key == ("discs/0", 1)
    assert "truncated" in record.errors["model"]
    assert record.tracks == {}
