import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from iog.guidance import GuidanceSpec, heatmap, windows
from iog_export.networks import NetworkSpec
from iog_export.split import split, whole
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from torch.utils.flop_counter import FlopCounterMode


def points(*xy):
    return np.array(xy, np.int32).reshape(-1, 2)


def initial(size):
    """One inside point and four corners, of which two lie in the frame's own corners."""
    return points((size // 2, size // 2 + 3)), points((0, 0), (size - 1, 40), (24, size - 19), (size - 1, size - 1))


def later_clicks(size):
    """Name -> foreground and background clicks beyond the initial ones."""
    m = size // 2
    return {
        "none": (points(), points()),
        "in the middle": (points((m - 50, m + 20)), points((m + 61, m))),
        "overlapping": (points((m, m), (m + 3, m + 1), (m + 17, m)), points((m + 1, m - 2), (m + 9, m + 9))),
        "at borders and corners": (
            points((0, m), (size - 1, 0)),
            points((m, size - 1), (3, size - 2), (15, 1), (m, 16)),
        ),
    }


def heat(foreground, background, spec):
    return torch.from_numpy(np.stack([heatmap(foreground, spec), heatmap(background, spec)]))[None]


def scatter(grid, click, clicks, foreground, background, spec):
    """What a runtime does: lay the cells of each click's window into the click map, (64, g, g)."""
    origins, first = spec.window_origins(clicks), spec.first_cells(clicks)
    inputs = torch.from_numpy(windows(origins, foreground, background, spec)), torch.from_numpy(origins)
    for (x, y), cells in zip(first.tolist(), click(*inputs), strict=True):
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + spec.cells, spec.grid), min(y + spec.cells, spec.grid)
        grid[:, y0:y1, x0:x1] = cells[:, y0 - y : y1 - y, x0 - x : x1 - x]


def click_map(click, foreground, background, spec):
    grid = torch.zeros(64, spec.grid, spec.grid, dtype=click.zero.dtype)
    scatter(grid, click, np.concatenate([foreground, background]), foreground, background, spec)
    return grid


def relative_error(actual, expected):
    """Largest error in units of the expected values' spread."""
    return ((actual - expected).abs().max() / expected.std()).item()


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (NetworkSpec("resnet18"), 256),
        (NetworkSpec("resnet18"), 384),
        (NetworkSpec("resnet18"), 512),
        (NetworkSpec("resnet34"), 512),
        (NetworkSpec("resnet18", width=64, normalize=True), 128),
        (NetworkSpec("resnet30", width=96, normalize=True), 192),
        (NetworkSpec("resnet18-half", width=64, normalize=True), 192),
        pytest.param(NetworkSpec("resnet50"), 512, marks=pytest.mark.slow),
        pytest.param(NetworkSpec("resnet101"), 512, marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_split_equals_the_network_wherever_the_clicks_are(filled, spec, size):
    network = filled(spec)
    parts = split(network, size=size, fwhm=10 * size / 512)
    foreground, background = initial(size)
    image = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8)
    guidance = heat(foreground, background, parts.guidance)

    features = network.encode(torch.cat([image.permute(0, 3, 1, 2), guidance], dim=1).double())
    encoded = parts.encoder(image, guidance)
    for name, later in later_clicks(size).items():
        clicks = [np.concatenate(pair) for pair in zip((foreground, background), later, strict=True)]
        expected = network.decode(features, heat(*clicks, parts.guidance).double()).logits[:, 0]
        actual = parts.head(*encoded, click_map(parts.click, *clicks, parts.guidance)[None])
        assert relative_error(actual, expected) < 1e-9, name


@torch.inference_mode()
def test_features_have_the_shapes_of_the_bundle_contract(filled):
    parts = split(filled(NetworkSpec("resnet18", width=64), dtype=torch.float32), size=256, fwhm=5)
    image, guidance = torch.zeros(2, 256, 256, 3, dtype=torch.uint8), torch.zeros(2, 2, 256, 256, dtype=torch.uint8)
    context, pooled, level1, level2, detail, skip = features = parts.encoder(image, guidance)
    assert context.shape == (2, 128, 16, 16)
    assert pooled.shape == (2, (512 + 64) // 4, 50)
    assert level1.shape == (2, 64, 16, 16)
    assert level2.shape == (2, 64, 32, 32)
    assert detail.shape == (2, 32, 64, 64)
    assert skip.shape == (2, 64, 64, 64)
    assert parts.head(*features, torch.zeros(2, 64, 16, 16)).shape == (2, 64, 64)


@torch.inference_mode()
def test_a_network_without_branch_is_one_graph_of_the_same_numbers(filled):
    network = filled(NetworkSpec("resnet18", refine=False))
    image, spec = torch.randint(0, 256, (1, 256, 256, 3), dtype=torch.uint8), GuidanceSpec(256, 5)
    guidance = heat(*initial(256), spec)
    expected = network(torch.cat([image.permute(0, 3, 1, 2), guidance], dim=1).double()).logits[:, 0]
    assert relative_error(whole(network, size=256)(image, guidance), expected) < 1e-9


@torch.inference_mode()
def test_single_precision_is_folded_in_double(filled):
    network = filled(NetworkSpec("resnet18", width=64))
    parts = split(filled(NetworkSpec("resnet18", width=64), dtype=torch.float32), size=128, fwhm=2.5)
    foreground, background = initial(128)
    image, guidance = torch.randint(0, 256, (1, 128, 128, 3), dtype=torch.uint8), heat(*initial(128), parts.guidance)
    expected = network(torch.cat([image.permute(0, 3, 1, 2), guidance], dim=1).double()).logits[:, 0]
    clicks = click_map(parts.click, foreground, background, parts.guidance)
    assert relative_error(parts.head(*parts.encoder(image, guidance), clicks[None]).double(), expected) < 3e-4


def test_splitting_leaves_the_network_as_it_was(filled):
    network = filled(NetworkSpec("resnet18", width=16)).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    split(network, size=128, fwhm=2.5)
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_the_wrong_way_to_export_is_refused(filled):
    with pytest.raises(ValueError, match=r"use whole\(\)"):
        split(filled(NetworkSpec("resnet18", refine=False, width=16)), size=128, fwhm=2.5)
    with pytest.raises(ValueError, match=r"use split\(\)"):
        whole(filled(NetworkSpec("resnet18", width=16)), size=128)


@pytest.fixture(scope="module")
def branch(filled):
    """size, fwhm -> the windowed branch, the guidance, and what the network's own branch says of all clicks."""
    network = filled(NetworkSpec("resnet18", width=2))

    @functools.cache
    def make(size, fwhm):
        parts = split(network, size=size, fwhm=fwhm)
        blank = network.iog_points(torch.zeros(1, 2, size, size, dtype=torch.float64))

        def reference(foreground, background):
            return (network.iog_points(heat(foreground, background, parts.guidance).double()) - blank)[0]

        return parts.click, parts.guidance, reference

    return make


@torch.inference_mode()
def test_a_window_is_exact_at_every_alignment(branch):
    click, spec, reference = branch(512, 10)
    n = np.arange(32)  # clicks, on a lattice 6 wide; per axis, all 16 offsets to the cells of 16 pixels
    clicks = np.stack([80 + 64 * (n % 6) + n % 16, 80 + 64 * (n // 6) + 5 * n % 16], axis=1).astype(np.int32)
    assert all(len({c % 16 for c in axis}) == 16 for axis in clicks.T.tolist())
    foreground, background = clicks[::2], clicks[1::2]
    assert relative_error(click_map(click, foreground, background, spec), reference(foreground, background)) < 1e-9


@pytest.mark.parametrize("edge", ["left", "right", "top", "bottom"])
@torch.inference_mode()
def test_a_window_over_the_border_is_exact(branch, edge):
    click, spec, reference = branch(512, 10)
    depth, along = np.arange(24), 20 + 20 * np.arange(24)
    depth = 511 - depth if edge in ("right", "bottom") else depth
    clicks = np.stack([depth, along] if edge in ("left", "right") else [along, depth], axis=1).astype(np.int32)
    actual = click_map(click, clicks, points(), spec)
    assert relative_error(actual, reference(clicks, points())) < 1e-9


@torch.inference_mode()
def test_cells_outside_the_map_do_not_change(branch):
    click, spec, _ = branch(512, 10)
    corners = points((0, 0), (511, 511))
    origins, first = spec.window_origins(corners), spec.first_cells(corners)
    cells = click(torch.from_numpy(windows(origins, corners, corners, spec)), torch.from_numpy(origins))
    assert first.tolist() == [[-1, -1], [31, 31]]
    near, far = cells.abs().sum(dim=1) > 0  # (n, n) each
    assert not near[0].any()
    assert not near[:, 0].any()
    assert near[1, 1]
    assert not far[1:].any()
    assert not far[:, 1:].any()
    assert far[0, 0]


@given(
    fwhm=st.sampled_from([1.0, 2.5, 5.0, 10.0, 13.7, 32.0]),
    clicks=st.lists(st.tuples(st.integers(0, 127), st.integers(0, 127), st.booleans()), min_size=1, max_size=6),
)
@settings(max_examples=40, deadline=None)
@torch.inference_mode()
def test_click_by_click_equals_all_at_once_in_any_order(branch, fwhm, clicks):
    click, spec, reference = branch(128, fwhm)
    grid = torch.zeros(64, spec.grid, spec.grid, dtype=torch.float64)
    for n in range(1, len(clicks) + 1):  # each step computes the newest click's window, of all heat so far
        foreground, background = (points(*((x, y) for x, y, p in clicks[:n] if p == positive)) for positive in (1, 0))
        scatter(grid, click, points(clicks[n - 1][:2]), foreground, background, spec)
    expected = reference(foreground, background)
    assert (grid - expected).abs().max() < 1e-9 * max(1, expected.std())


class OnePixelLess(GuidanceSpec):
    """Windows for heat that is thought to reach one pixel less far than it does."""

    @property
    def reach(self):
        return self.patch.shape[0] // 2 - 1


@pytest.mark.parametrize(("size", "fwhm"), [(512, 10.0), (384, 7.5), (256, 5.0), (128, 2.5), (128, 10.0)])
@torch.inference_mode()
def test_windows_for_one_pixel_less_are_wrong(branch, size, fwhm):
    click, spec, reference = branch(size, fwhm)
    less = OnePixelLess(size, fwhm)
    m = size // 2
    wrong = []
    for a in range(16):
        only = points((m + a, m))
        expected = reference(only, points())
        assert relative_error(click_map(click, only, points(), spec), expected) < 1e-9
        first, actual = less.first_cells(only)[0].tolist(), torch.zeros_like(expected)
        kept = slice(first[1], first[1] + less.cells), slice(first[0], first[0] + less.cells)
        actual[:, *kept] = expected[:, *kept]  # were even these cells exact
        wrong += [a] if relative_error(actual, expected) > 1e-9 else []
    assert wrong


@pytest.mark.parametrize(("fwhm", "reach", "cells", "window"), [(10.0, 14, 4, 79), (5.0, 7, 3, 63), (2.5, 3, 3, 63)])
def test_the_window_follows_from_the_guidance(branch, fwhm, reach, cells, window):
    _, spec, _ = branch(512, fwhm)
    assert (spec.reach, spec.cells, spec.window) == (reach, cells, window)


@pytest.mark.parametrize("grid", [2, 8, 16, 24, 32])
def test_pyramid_pooling_is_one_matrix_and_its_upsampling_another(filled, grid):
    head = split(filled(NetworkSpec("resnet18", width=2)), size=16 * grid, fwhm=2).head
    x = torch.rand(1, 3, grid, grid, dtype=torch.float64)
    pooled = [adaptive_avg_pool2d(x, n) for n in (1, 2, 3, 6)]
    assert torch.allclose(x.flatten(2) @ head.pool, torch.cat([p.flatten(2) for p in pooled], dim=2), atol=1e-14)
    resized = sum(interpolate(p, size=(grid, grid), mode="bilinear", align_corners=True) for p in pooled)
    spread = torch.cat([p.flatten(2) for p in pooled], dim=2) @ head.unpool
    assert torch.allclose(spread.view_as(resized), resized, atol=1e-14)


@torch.inference_mode()
def test_a_click_costs_a_tenth_of_the_network(filled):
    parts = split(filled(NetworkSpec("resnet101"), dtype=torch.float32), size=512, fwhm=10)

    def gmac(part, *inputs):
        with FlopCounterMode(display=False) as counter:
            outputs = part.to("meta")(*inputs)
        return counter.get_total_flops() / 2e9, outputs

    with torch.device("meta"):  # shapes only, no arithmetic
        image, guidance = torch.zeros(1, 512, 512, 3, dtype=torch.uint8), torch.zeros(1, 2, 512, 512, dtype=torch.uint8)
        window, origin = torch.zeros(1, 2, 79, 79, dtype=torch.uint8), torch.zeros(1, 2, dtype=torch.int32)
        backbone, _ = gmac(parts.encoder.backbone, torch.zeros(1, 5, 512, 512))
        encoder, features = gmac(parts.encoder, image, guidance)
        head, _ = gmac(parts.head, *features, torch.zeros(1, 64, 32, 32))
        click, _ = gmac(parts.click, window, origin)
    assert head <= 7.0
    assert click <= 0.07
    assert encoder <= backbone + 5
