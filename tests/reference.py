"""Independent NumPy oracle: the equations of the paper, slow and readable.

Nothing is imported from the package under test, not even a constant. Equation numbers are those of arXiv 2512.12981.
All arithmetic is float64 whatever the type of the weights, so that the oracle is the more precise side of a comparison.
"""

import math
from typing import Any

import numpy as np

# ---------------------------------------------------------------------------------------------- the dead-zone quantizer


def absmax(w: np.ndarray, *, over: str = "all") -> float:
    """§6.1: R, the 0.99 quantile of |w| with linear interpolation; `over="nonzero"` leaves exact zeros out."""
    magnitudes = np.abs(np.asarray(w, dtype=np.float64)).ravel()
    if over == "nonzero":
        magnitudes = magnitudes[magnitudes != 0]
    return float(np.quantile(magnitudes, 0.99, method="linear")) if magnitudes.size else 0.0


def round_half_even(x: Any) -> Any:
    """Round to nearest, halves to even, the IEEE default."""
    return np.rint(x)


def deadzone_width(theta_dz: float, r: float) -> float:
    """(15): d = 2 R (1 - tanh|θ_dz|)."""
    return 2.0 * r * (1.0 - math.tanh(abs(theta_dz)))


def continuous_bitwidth(theta_bit: float, max_bits: float = 8.0) -> float:
    """(18) before its round; b_min = 2."""
    return math.tanh(abs(theta_bit)) * (max_bits - 2.0) + 2.0


def bitwidth(theta_bit: float, max_bits: float = 8.0) -> int:
    """(18): b = round(tanh|θ_bit| (b_max - b_min) + b_min)."""
    return int(round_half_even(continuous_bitwidth(theta_bit, max_bits)))


def levels(bits: float) -> float:
    """Q = 2^(b-1) - 1, the largest integer of a symmetric b-bit code."""
    return 2.0 ** (bits - 1.0) - 1.0


def step_size(r: float, d: float, bits: float) -> float:
    """(12): s = (R - d/2) / (Q - 1/2), plus 1e-8."""
    return (r - d / 2.0) / (levels(bits) - 0.5) + 1e-8


def dead_zone(w: np.ndarray, d: float, s: float, bits: float) -> tuple[np.ndarray, np.ndarray]:
    """(10): the integers q and the reconstruction ŵ for a given dead-zone width and step."""
    w = np.asarray(w, dtype=np.float64)
    delta = d / 2.0 - s / 2.0
    q_max = levels(bits)
    u = np.sign(w) * np.maximum(np.abs(w) - delta, 0.0)
    q = np.clip(round_half_even(u / s), -q_max, q_max)
    return q, s * q + delta * np.sign(q)


def uniform(w: np.ndarray, r: float, bits: float) -> np.ndarray:
    """(1) (2): the mid-tread uniform symmetric quantizer, s = R / Q."""
    w = np.asarray(w, dtype=np.float64)
    if r == 0.0:
        return np.zeros_like(w)
    q_max = levels(bits)
    s = r / q_max
    return s * np.clip(round_half_even(w / s), -q_max, q_max)


def forward(
    w: np.ndarray,
    theta_dz: float,
    theta_bit: float,
    *,
    max_bits: float = 8.0,
    fixed_bits: int | None = None,
    over: str = "all",
    r: float | None = None,
) -> np.ndarray:
    """ŵ of one layer; `fixed_bits` replaces b(θ_bit), and `r` the quantile."""
    r = absmax(w, over=over) if r is None else r
    bits = bitwidth(theta_bit, max_bits) if fixed_bits is None else fixed_bits
    d = deadzone_width(theta_dz, r)
    return dead_zone(w, d, step_size(r, d, bits), bits)[1]


def undecided(
    w: np.ndarray,
    theta_dz: float,
    theta_bit: float,
    eps: float,
    *,
    max_bits: float = 8.0,
    fixed_bits: int | None = None,
    r: float | None = None,
) -> np.ndarray:
    """Mask of the weights so near a rounding boundary that arithmetic of machine precision `eps` may take either side.

    Sixteen roundings of relative size `eps` in R, |w| and s are allowed for. Exact zeros are always decided.
    """
    w = np.asarray(w, dtype=np.float64)
    r = absmax(w) if r is None else r
    bits = bitwidth(theta_bit, max_bits) if fixed_bits is None else fixed_bits
    d = deadzone_width(theta_dz, r)
    s = step_size(r, d, bits)
    u = (np.abs(w) - (d / 2.0 - s / 2.0)) / s
    slack = 16.0 * eps * ((r + np.abs(w)) / s + np.abs(u))
    lowest = np.clip(round_half_even(u - slack), 0.0, levels(bits))
    highest = np.clip(round_half_even(u + slack), 0.0, levels(bits))
    return (lowest != highest) & (w != 0)


# --------------------------------------------------------------------------------------------------------- its gradient
#
# Every straight-through op f is replaced by x + (f(x0) - x0) with the bracket frozen, and sign(w), sign(q) and R by
# their values. What is left is analytic, so the finite difference is taken along the imaginary axis:
# f(x + ih) = f(x) + ih f'(x) has no cancellation, and the derivative is exact to rounding.


class Surrogate:
    """ŵ as an analytic function of (w, θ_dz, θ_bit) around the point where it was built."""

    def __init__(
        self,
        w: np.ndarray,
        theta_dz: float,
        theta_bit: float,
        *,
        max_bits: float = 8.0,
        fixed_bits: int | None = None,
        r: float | None = None,
    ) -> None:
        self.w0 = np.asarray(w, dtype=np.float64)
        self.theta_dz0, self.theta_bit0 = float(theta_dz), float(theta_bit)
        self.max_bits, self.fixed_bits = float(max_bits), fixed_bits
        self.r = absmax(self.w0) if r is None else r
        self.sign_w = np.sign(self.w0)

        bits_x0 = continuous_bitwidth(self.theta_bit0, self.max_bits)
        self.bits_bracket = round_half_even(bits_x0) - bits_x0
        bits = round_half_even(bits_x0) if fixed_bits is None else float(fixed_bits)
        d = deadzone_width(self.theta_dz0, self.r)
        s = step_size(self.r, d, bits)
        delta = d / 2.0 - s / 2.0

        relu_x0 = np.abs(self.w0) - delta
        self.relu_bracket = np.maximum(relu_x0, 0.0) - relu_x0
        scaled_x0 = self.sign_w * np.maximum(relu_x0, 0.0) / s
        q = np.clip(round_half_even(scaled_x0), -levels(bits), levels(bits))
        self.q_bracket = q - scaled_x0  # the round's bracket and the clip's, added
        self.sign_q = np.sign(q)

    def __call__(self, w: Any, theta_dz: Any, theta_bit: Any, r: Any = None) -> Any:
        """(10), (12), (15), (18) with frozen brackets; |x| is written sign(x0)·x. R is a constant unless given."""
        r = self.r if r is None else r
        tanh_dz = np.tanh(np.sign(self.theta_dz0) * theta_dz)
        tanh_bit = np.tanh(np.sign(self.theta_bit0) * theta_bit)
        bits = tanh_bit * (self.max_bits - 2.0) + 2.0 + self.bits_bracket
        if self.fixed_bits is not None:
            bits = float(self.fixed_bits)
        d = 2.0 * r * (1.0 - tanh_dz)
        s = (r - d / 2.0) / (2.0 ** (bits - 1.0) - 1.0 - 0.5) + 1e-8
        delta = d / 2.0 - s / 2.0
        # sign(w)·|w| = w, also at w = 0: the derivative there is 1, not 0
        u = w + self.sign_w * (self.relu_bracket - delta)
        q = u / s + self.q_bracket
        return s * q + delta * self.sign_q


def gradients(
    w: np.ndarray,
    theta_dz: float,
    theta_bit: float,
    upstream: np.ndarray,
    *,
    max_bits: float = 8.0,
    fixed_bits: int | None = None,
    r: float | None = None,
) -> tuple[np.ndarray, float, float]:
    """Gradients of Σ upstream · ŵ with respect to w, θ_dz and θ_bit."""
    f = Surrogate(w, theta_dz, theta_bit, max_bits=max_bits, fixed_bits=fixed_bits, r=r)
    w = np.asarray(w, dtype=np.float64)
    h = 1e-30
    # ŵ[i] depends on w[i] only (R is frozen), so one step on all the weights gives every diagonal entry
    h_w = 1e-30 * max(f.r, 1e-30)
    grad_w = upstream * f(w + 1j * h_w, theta_dz, theta_bit).imag / h_w
    grad_dz = np.sum(upstream * f(w + 0j, theta_dz + 1j * h, theta_bit + 0j).imag / h)
    grad_bit = np.sum(upstream * f(w + 0j, theta_dz + 0j, theta_bit + 1j * h).imag / h)
    return grad_w, float(grad_dz), float(grad_bit)


def learned_scale_slopes(
    w: np.ndarray, theta_dz: float, theta_bit: float, r: float, *, fixed_bits: int | None = None
) -> np.ndarray:
    """∂ŵ/∂R of every weight for a learned R, by the rule of LSQ (Esser et al., arXiv 1902.08153, eq. (3)).

    Inside the clip it is the straight-through surrogate's; outside, where LSQ has ±Q, the largest level's, s Q + δ.
    """
    h = 1e-30
    inside = Surrogate(w, theta_dz, theta_bit, fixed_bits=fixed_bits, r=r)(w + 0j, theta_dz, theta_bit, r + 1j * h).imag
    bits = bitwidth(theta_bit) if fixed_bits is None else fixed_bits
    d = deadzone_width(theta_dz, r + 1j * h)
    s = step_size(r + 1j * h, d, bits)
    largest = (s * levels(bits) + d / 2.0 - s / 2.0).imag
    return np.where(np.abs(w) > r, np.sign(w) * largest, inside) / h


def learned_scale_gradient(
    w: np.ndarray,
    theta_dz: float,
    theta_bit: float,
    r: float,
    upstream: np.ndarray,
    *,
    fixed_bits: int | None = None,
) -> float:
    """Gradient of Σ upstream · ŵ with respect to a learned R, times LSQ's 1 / sqrt(N Q)."""
    q_max = levels(bitwidth(theta_bit) if fixed_bits is None else fixed_bits)
    slopes = learned_scale_slopes(w, theta_dz, theta_bit, r, fixed_bits=fixed_bits)
    return float(np.sum(upstream * slopes)) / math.sqrt(w.size * q_max)


# ------------------------------------------------------------------------------------------------------------ MACs (§2)


def dense_macs(shape: tuple[int, ...], m_h: int = 1, m_w: int = 1) -> int:
    """(20): every weight is multiplied once at every output position. Linear layers have one position."""
    count = 0
    for _ in np.ndindex(*shape):
        count += m_h * m_w
    return count


def unstructured_macs(weight: np.ndarray, m_h: int = 1, m_w: int = 1) -> int:
    """(21): only the non-zero weights are multiplied."""
    count = 0
    for index in np.ndindex(*weight.shape):
        if weight[index] != 0:
            count += m_h * m_w
    return count


def structured_macs(weight: np.ndarray, null_in: set[int], null_out: set[int], m_h: int = 1, m_w: int = 1) -> int:
    """§2, DJPQ's formula: every weight between a live input and a live output channel, zero or not."""
    count = 0
    for index in np.ndindex(*weight.shape):
        c_out, c_in = index[0], index[1]
        if c_out not in null_out and c_in not in null_in:
            count += m_h * m_w
    return count


# ------------------------------------------------------------------------------------------------------ sparsity losses


def _norm(values: list[float]) -> float:
    """Euclidean norm of a list of numbers."""
    return math.sqrt(math.fsum(value * value for value in values))


def _entries(weight: np.ndarray) -> list[float]:
    return [float(weight[index]) for index in np.ndindex(*weight.shape)]


def group_lasso_channels(convs: list[np.ndarray]) -> float:
    """Σ over convs and output filters of ‖W[c]‖₂."""
    total = 0.0
    for weight in convs:
        for c in range(weight.shape[0]):
            total += _norm(_entries(weight[c]))
    return total


def group_lasso_blocks(convs: list[np.ndarray], block_size: int = 4) -> float:
    """Σ of ‖·‖₂ of blocks of consecutive output filters; the last block of a layer may be smaller."""
    total = 0.0
    for weight in convs:
        block: list[float] = []
        for c in range(weight.shape[0]):
            block.extend(_entries(weight[c]))
            if (c + 1) % block_size == 0 or c + 1 == weight.shape[0]:
                total += _norm(block)
                block = []
    return total


def l1_kernel_sparsity(convs: list[np.ndarray]) -> float:
    """Σ over convs, output and input channels of the L1 norm of the kernel."""
    total = 0.0
    for weight in convs:
        for c_out in range(weight.shape[0]):
            for c_in in range(weight.shape[1]):
                total += math.fsum(abs(value) for value in _entries(weight[c_out, c_in]))
    return total


def column_norms(weight: np.ndarray) -> float:
    """Σ_j ‖W[:, j]‖₂, a conv taken as the matrix (c_out, c_in·k·k)."""
    total = 0.0
    for column in np.ndindex(*weight.shape[1:]):
        total += _norm([float(weight[(row, *column)]) for row in range(weight.shape[0])])
    return total


def group_lasso(
    linears: list[np.ndarray], convs: list[np.ndarray], lambda_linear: float = 1e-4, lambda_conv: float = 1e-4
) -> float:
    """λ_linear Σ of the linear layers' column norms + λ_conv Σ of the convs'."""
    total = 0.0
    for weight in linears:
        total += lambda_linear * column_norms(weight)
    for weight in convs:
        total += lambda_conv * column_norms(weight)
    return total
