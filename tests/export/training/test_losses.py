import torch
from iog_export.networks import Outputs
from iog_export.training.losses import boundary_weight, loss


def square(size: int = 64) -> torch.Tensor:
    target = torch.zeros(1, 1, size, size)
    target[:, :, 16:48, 16:48] = 1
    return target


def logits_of(target: torch.Tensor, strength: float = 12.0) -> torch.Tensor:
    return (
        torch.nn.functional.interpolate(target, size=(16, 16), mode="bilinear", align_corners=True) - 0.5
    ) * strength


def test_better_masks_have_a_lower_loss():
    target, known = square(), torch.ones(1, 1, 64, 64)
    right, empty, wrong = (
        loss(Outputs(logits, (logits,) * 4), target, known)
        for logits in (logits_of(target), torch.full((1, 1, 16, 16), -6.0), -logits_of(target))
    )
    assert right < 0.6 * empty < empty < wrong


def test_unknown_pixels_do_not_count():
    target, known = square(), torch.ones(1, 1, 64, 64)
    known[:, :, :, 40:] = 0
    altered = target.clone()
    altered[:, :, :, 48:] = 1
    logits = logits_of(target).requires_grad_()
    outputs = Outputs(logits, ())
    # boundary weights reach across the border of what is known, but no farther than their width
    assert torch.allclose(loss(outputs, target, known), loss(outputs, altered, known))
    loss(outputs, target, known).backward()
    assert not logits.grad[:, :, :, 11:].any()
    assert logits.grad[:, :, :, :9].all()


def test_all_unknown_sample_gives_a_finite_loss():
    target = square()
    assert torch.isfinite(loss(Outputs(logits_of(target), ()), target, torch.zeros_like(target)))


def test_boundary_weighs_most():
    weight = boundary_weight(square())[0, 0]
    assert weight[32, 32] == weight[2, 2] == 1
    assert weight[32, 16] > 2
    assert weight.max() <= 5


def test_boundary_weight_compares_a_pixel_with_the_square_around_it():
    target = (torch.rand(2, 1, 64, 64, generator=torch.manual_seed(0)) < 0.5).float()
    mean = torch.nn.functional.avg_pool2d(target, 5, stride=1, padding=2, count_include_pad=False)
    assert torch.allclose(boundary_weight(target), 1 + 4 * (target - mean).abs(), atol=1e-6)
