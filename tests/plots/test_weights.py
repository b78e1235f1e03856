import numpy as np
import pytest
from plot_tables import KERNELS, words

from codeq import plots
from codeq.common.errors import CodeqError


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (4, 5), (1, 1, 3, 3)])
def test_the_map_shows_every_weight_at_its_place(shape):
    weight = (np.arange(np.prod(shape)) % 3).reshape(shape)
    (image,) = plots.sparsity_map(weight, "x").axes[0].images
    pixels = image.get_array()
    kernels = weight.reshape(*shape[:2], *(shape[2:] or (1, 1)))
    k_h, k_w = kernels.shape[2:]
    assert pixels.shape == (shape[0] * k_h, shape[1] * k_w)
    for out, row in enumerate(kernels):
        for channel, kernel in enumerate(row):
            top, left = out * k_h, channel * k_w
            assert (pixels[top : top + k_h, left : left + k_w] == (kernel != 0)).all()


def test_the_map_says_how_much_is_zero():
    assert "25.0 % zero" in words(plots.sparsity_map(KERNELS, "conv1"))


def test_a_large_layer_is_drawn_without_lines_between_kernels():
    small, large = (plots.sparsity_map(np.ones((n, n, 3, 3)), "x").axes[0] for n in (3, 512))
    across, down = (lines.get_segments() for lines in small.collections)
    assert [segment[0][1] for segment in across] == [2.5, 5.5]
    assert [segment[0][0] for segment in down] == [2.5, 5.5]
    assert not large.collections
    assert (large.images[0].get_array() == 1).all()


def test_a_map_is_black_where_weights_are_zero():
    (image,) = plots.sparsity_map(KERNELS, "conv1").axes[0].images
    zero, other = (image.cmap(image.norm(value))[:3] for value in (0, 1))
    assert (zero, other) == ((0, 0, 0), (1, 1, 1))


def test_kernel_maps_show_the_share_of_weights_that_is_left():
    weight = np.zeros((2, 2, 2, 2))
    weight[0, 0] = 1
    weight[1, 0, 0, 0] = -1
    axes = plots.kernel_maps({"conv": weight}).axes[0]
    assert axes.images[0].get_array().tolist() == [[100, 0], [25, 0]]


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 2, 3, 4)])
def test_the_map_of_a_convolution_in_one_or_three_dimensions_shows_every_weight(shape):
    weight = (np.arange(np.prod(shape)) % 3).reshape(shape)
    pixels = plots.sparsity_map(weight, "x").axes[0].images[0].get_array()
    height, width = int(np.prod(shape[2:-1])), shape[-1]
    assert pixels.shape == (shape[0] * height, shape[1] * width)
    for index, value in np.ndenumerate(weight):
        row = int(np.ravel_multi_index(index[2:-1], shape[2:-1])) if height > 1 else 0
        assert pixels[index[0] * height + row, index[1] * width + index[-1]] == (value != 0)


def test_a_weight_of_no_layer_is_refused_with_its_shape():
    with pytest.raises(CodeqError, match=r"weight of 'x' has shape \(3,\)"):
        plots.sparsity_map(np.ones(3), "x")
