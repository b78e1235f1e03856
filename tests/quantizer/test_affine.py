"""The affine grid of the dead-zone quantizer against NumPy code written from the equations."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from codeq.analysis.requantize import Requantizer
from codeq.analysis.weights import weight_levels
from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig
from codeq.metrics import ledger
from codeq.metrics.codes import integer_weights, weight_codes
from codeq.quantizer import DeadZoneQuantizer
from codeq.quantizer.attach import attach_weight_quantizers
from codeq.quantizer.functions import dead_zone_grid
from codeq.quantizer.layers import forward_weight, latent_weight


def oracle(w: np.ndarray, r: float, theta_dz: float, bits: int, largest_offset: int = 40_000):
    """Levels and gradients' parts: d = (2m + 1) s with the m whose (2m + 1) is next to d / s of eq. (12) and (15)."""
    q_max = 2 ** (bits - 1) - 1
    d_wanted = 2 * r * (1 - math.tanh(abs(theta_dz)))
    s_wanted = (r - d_wanted / 2) / (q_max - 0.5)
    odd = 2 * np.arange(largest_offset) + 1
    m = int(np.argmin(np.abs(odd - d_wanted / s_wanted))) if s_wanted else largest_offset
    d = r * (2 * m + 1) / (q_max + m)
    s = (r - d / 2) / (q_max - 0.5)  # eq. (12)
    assert d == pytest.approx((2 * m + 1) * s)
    delta = (d - s) / 2
    u = np.sign(w) * np.maximum(np.abs(w) - delta, 0) / s
    q = np.clip(np.round(u), -q_max, q_max) * (np.abs(w) > d / 2)
    return m, s, d, u, q, s * q + delta * np.sign(q)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("scale", ["absmax", "learned"])
def test_levels_and_gradients_are_those_of_the_equations(granularity, scale):
    random = np.random.default_rng(3)
    w, upstream = random.standard_t(4, size=(6, 50)), random.normal(size=(6, 50))
    offsets = set()
    for bits, theta in ((2, 0.4), (3, 3.0), (4, 0.7), (4, -1.1), (8, 1.5), (8, 5.0)):
        theta_bit = math.atanh((bits - 2 + 0.2) / 6) if bits < 8 else 3.0
        quantizer = DeadZoneQuantizer(
            init_deadzone_logit=theta, init_bit_logit=theta_bit, granularity=granularity, scale=scale, grid="affine"
        ).double()
        leaf = torch.tensor(w, requires_grad=True)
        quantized = quantizer(leaf)
        quantized.backward(torch.tensor(upstream))
        by_dz = by_bit = 0.0
        q_max, by_scale, reached = 2 ** (bits - 1) - 1, [], upstream.copy()
        groups = [slice(None)] if granularity == "layer" else range(6)
        for group in groups:
            x, g = w[group], upstream[group]
            r = np.quantile(np.abs(x), 0.99)
            m, s, d, u, q, expected = oracle(x, r, theta, bits)
            np.testing.assert_allclose(quantized.detach().numpy()[group], expected, rtol=1e-6)
            slope_d = (np.sign(q) - np.sign(x)) / 2  # δ = (d - s) / 2
            slope_s = q - u - slope_d
            along_d = np.sum(g * slope_d) - np.sum(g * slope_s) / (2 * q_max - 1)  # s depends on d by eq. (12)
            by_dz += along_d * -2 * r * np.sign(theta) * (1 - math.tanh(theta) ** 2)
            along_q = -(r - d / 2) / (q_max - 0.5) ** 2 * 2 ** (bits - 1) * math.log(2)
            by_bit += np.sum(g * slope_s) * along_q * 6 * (1 - math.tanh(theta_bit) ** 2)
            inside = slope_s * s / r + slope_d * d / r  # s and d are proportional to R: m does not depend on it
            by_scale.append(np.sum(g * np.where(np.abs(x) > r, np.sign(x), inside)) / math.sqrt(x.size * q_max))
            if scale == "learned":  # eq. (5) of LSQ
                reached[group] *= np.abs(x) <= r
            offsets.add(m)
        assert torch.equal(leaf.grad, torch.tensor(reached))
        assert quantizer.logit_dz.grad.item() == pytest.approx(by_dz, rel=1e-5)
        assert quantizer.logit_bit.grad.item() == pytest.approx(by_bit, rel=1e-5)
        if scale == "learned":
            np.testing.assert_allclose(quantizer.learned_absmax.grad.flatten().numpy(), by_scale, rtol=1e-5)
    assert offsets >= {0, 1}
    assert max(offsets) > 5


def test_every_level_is_an_integer_times_the_step_and_all_tables_agree():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 9, bias=False))
    options = {"fixed_bit_val": 3, "learnable_bit": False, "init_deadzone_logit": 0.5, "grid": "affine"}
    attach_weight_quantizers(net, [], "deadzone", options)
    latent = latent_weight(net[1]).detach().double().numpy()
    m, s, d, _, q, _ = oracle(latent, np.quantile(np.abs(latent), 0.99), 0.5, 3)
    assert m > 1
    factors = forward_weight(net[1]).detach().double().numpy() / s
    np.testing.assert_allclose(factors, np.round(factors), atol=1e-4)
    assert set(np.abs(np.round(factors)).ravel()) == {0, m + 1, m + 2, m + 3}
    np.testing.assert_array_equal(integer_weights(net[1]), np.round(factors))
    np.testing.assert_array_equal(weight_codes(net[1]), q)
    table = weight_levels(net, "1")
    np.testing.assert_allclose(
        table["level"], s * np.array([-m - 3, -m - 2, -m - 1, 0, m + 1, m + 2, m + 3]), rtol=1e-5
    )
    assert table["upper"][3] == pytest.approx(d / 2)
    assert table["count"].tolist() == [int((q == code).sum()) for code in range(-3, 4)]
    # EBOPs count the bits from the highest to the lowest set bit of each factor.
    span = {factor: len(f"{factor:b}".strip("0")) for factor in (m + 1, m + 2, m + 3)}
    ebops = 32 * sum(span[abs(factor)] for factor in integer_weights(net[1]).ravel() if factor)
    assert ledger(net, (1, 8, 8)).loc[("BOPs", "EBOPs", "all"), "value"] == ebops
    # A dead-zone in force stays as it is when it is set again, and gives the same weights.
    what_if = Requantizer(net, (1, 8, 8))
    assert what_if.trained["1"].dead_zone == pytest.approx(d / 2 / np.quantile(np.abs(latent), 0.99))
    again = what_if.apply({"1": what_if.trained["1"].dead_zone})
    torch.testing.assert_close(forward_weight(again[1]), forward_weight(net[1]), rtol=1e-6, atol=0)


def test_the_ends_of_the_dead_zone_and_wrong_values():
    w = torch.linspace(-1, 1, 201).requires_grad_()
    for theta in (0.0, 20.0):  # all of the scale; no dead-zone wanted
        for values in (w, torch.zeros(4, requires_grad=True)):
            quantizer = DeadZoneQuantizer(init_deadzone_logit=theta, grid="affine")
            quantized = quantizer(values)
            quantized.sum().backward()
            assert quantized.isfinite().all()
            assert all(p.grad.isfinite().all() for p in quantizer.parameters())
        zeros = 197 if theta == 0 else 1  # all |w| < R = 0.99, or 0 alone
        assert int((quantizer(w) == 0).sum()) == zeros
    with pytest.raises(CodeqError, match="grid='afine': must be one of paper, affine"):
        ExperimentConfig(name="x", quantizer={"name": "deadzone", "kwargs": {"grid": "afine"}})


def test_an_unknown_grid_is_refused():
    with pytest.raises(CodeqError, match="grid='Paper': must be 'paper' or 'affine'"):
        dead_zone_grid(torch.tensor(1.0), torch.tensor(0.25), 4, grid="Paper")
