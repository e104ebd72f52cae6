"""The other way to a matrix product gives the same product."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from detectors.glip.modeling.linear import Linear, bmm, linear


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_it_is_the_product_whatever_the_shape_and_layout() -> None:
    weight, bias = torch.randn(7, 5), torch.randn(7)
    for x in (torch.randn(3, 4, 5), torch.randn(5, 6).mT, torch.randn(2, 3, 8, 5)[:, :, ::2], torch.randn(0, 5)):
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight), atol=1e-5, rtol=1e-5)
    a, b = torch.randn(3, 9, 5), torch.randn(3, 5, 4)
    torch.testing.assert_close(bmm(a, b), a @ b, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("_threads")
def test_it_learns() -> None:
    layer = Linear(5, 3)
    x = torch.randn(4, 5, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(3, -1).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(4, -1).detach(), atol=1e-5, rtol=1e-5)
