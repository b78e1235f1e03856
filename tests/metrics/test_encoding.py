import math
import struct
from base64 import b64encode

import numpy as np
import pytest
from cases import each
from hypothesis import given
from hypothesis import strategies as st

from codeq.metrics.encoding import decode_mask, decode_norms, encode_mask, encode_norms


@given(st.lists(st.booleans(), min_size=1, max_size=130))
def test_masks_survive_their_digits(mask):
    digits = encode_mask(np.array(mask))
    assert decode_mask(digits, len(mask)).tolist() == mask
    assert set(digits) <= set("0123456789abcdef")
    assert len(digits) == 2 * math.ceil(len(mask) / 8)


def test_norms_are_base64_of_float32():
    numbers = [0.5, 0.0, 1 / 3, math.nan, math.inf, 0.00706, 1e-45]
    text = encode_norms(np.array(numbers))
    assert text == b64encode(struct.pack("<7f", *numbers)).decode()
    np.testing.assert_allclose(decode_norms(text, 7), numbers, rtol=6e-8, atol=1e-45)
    assert decode_norms(text, 7)[-1] > 0


@each("text", ["AAAAPw==", "AAAAPwAAAAAAAAA/", "AAAAPwAAAAA", "AAAAPwAAAA§=", math.nan])
def test_a_damaged_text_is_an_error(text):
    with pytest.raises((ValueError, TypeError)):
        decode_norms(text, 2)
