"""Norms whose gradients stay finite at zero."""

import numpy as np
import pytest
import torch
from cases import each

from codeq.sparsity.norms import filter_norms, root_of_squares


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_root_is_the_square_root(dtype):
    squares = torch.tensor([0.0, 1e-30, 0.25, 9.0, 1e30], dtype=dtype)
    np.testing.assert_allclose(root_of_squares(squares), np.sqrt(squares.numpy()), rtol=1e-6)


def test_the_gradient_of_the_root_is_zero_at_zero_and_the_derivative_elsewhere():
    squares = torch.tensor([0.0, 0.25, 9.0], dtype=torch.float64, requires_grad=True)
    root_of_squares(squares).sum().backward()
    assert squares.grad.tolist() == [0.0, 1.0, 1 / 6]


def test_through_the_squares_the_gradient_is_that_of_a_norm():
    w = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    root_of_squares(w.square().sum(1)).sum().backward()
    torch.testing.assert_close(w.grad, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


@each("shape", [(5, 7), (5, 3, 4), (5, 3, 2, 4), (5, 3, 2, 2, 2)])
def test_filter_norms_are_taken_over_all_but_the_first_axis(shape):
    w = torch.randn(shape, dtype=torch.float64)
    want = [np.sqrt(sum(value**2 for value in row.ravel())) for row in w.numpy()]
    np.testing.assert_allclose(filter_norms(w), want, rtol=1e-12)


def test_the_gradient_of_a_dead_filters_norm_is_zero():
    w = torch.zeros(2, 3, 3, 3)
    w[1] = 1.0
    w.requires_grad_()
    filter_norms(w).sum().backward()
    assert (w.grad[0] == 0).all()
    assert w.grad[1].isfinite().all()
    assert (w.grad[1] > 0).all()
