"""Base class of quantizers with a scale `R`: computed from the weights, learned, or held."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from codeq.common.batches import described
from codeq.common.checks import check_choice
from codeq.common.errors import CodeqError
from codeq.quantizer.scale import AbsmaxOver, Granularity, Scale, absmax


class ScaledQuantizer(nn.Module):
    """A quantizer whose scale `R` is the 0.99 quantile of its weights, or a tensor that starts at that value.

    Parameters
    ----------
    absmax_over, granularity
        See `absmax`.
    scale : {"absmax", "learned", "held"}
        ``"absmax"``: computed from the weights. ``"learned"``: the parameter ``learned_absmax``. ``"held"``: the buffer
        ``held_absmax``, which does not change. Parameter and buffer are created empty, and take shape and value from
        the first weights that the quantizer sees, or from a state dict.

    Raises
    ------
    CodeqError
        For an unknown value.
    """

    def __init__(self, absmax_over: AbsmaxOver, granularity: Granularity, scale: Scale) -> None:
        super().__init__()
        check_choice("absmax_over", absmax_over, AbsmaxOver)
        check_choice("granularity", granularity, Granularity)
        check_choice("scale", scale, Scale)
        self.absmax_over = absmax_over
        self.granularity = granularity
        self.scale = scale
        if scale == "learned":
            # R = |ρ| rather than exp(ρ): R can start at 0, and weight decay shrinks it together with the weights.
            self.learned_absmax = nn.Parameter(torch.empty(0))
        elif scale == "held":
            self.register_buffer("held_absmax", torch.empty(0))

    @property
    def stored_scale(self) -> Tensor | None:
        """The learned or held scale, whose absolute value is `R`; `None` if `R` is computed from the weights."""
        return None if self.scale == "absmax" else getattr(self, f"{self.scale}_absmax")

    def magnitude(self, w: Tensor) -> Tensor:
        """Return `R` for `w`, ``[]`` or per channel ``[c_out, 1, …]``, in the unit of `w`, without a gradient."""
        if not isinstance(w, Tensor) or not w.is_floating_point():
            raise CodeqError(f"w: {described(w)}: must be a Tensor of floating-point weights")
        stored = self.stored_scale
        if stored is None:
            return absmax(w, self.absmax_over, self.granularity)
        if not stored.numel():
            self.set_scale(absmax(w, self.absmax_over, self.granularity))
        return stored.detach().abs()

    @torch.inference_mode(False)  # a training could not use its tensors
    def set_scale(self, value: Tensor) -> None:
        """Give the scale a value, ``[]`` or ``[c_out, 1, …]``; one that was computed from the weights is held then."""
        if self.scale == "absmax":
            self.scale = "held"
            self.register_buffer("held_absmax", value.detach().clone())
        else:
            assert self.stored_scale is not None
            # Assigned to `.data`, it stays the parameter that an optimizer may already hold.
            self.stored_scale.data = value.detach().clone()

    def reset_scale(self) -> None:
        """Forget a stored scale: it takes its value from the next weights that the quantizer sees."""
        if self.stored_scale is not None:
            self.stored_scale.data = self.stored_scale.new_empty(0)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        mine, stored = self.stored_scale, state_dict.get(f"{prefix}{self.scale}_absmax")
        if mine is not None and stored is not None and not mine.numel():
            mine.data = mine.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
