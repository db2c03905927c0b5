"""Numbers in tables are read at a glance."""

from __future__ import annotations

import pytest

from sae.base.tables import number


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.000123456, "0.0001235"), (0.4821, "0.4821"), (9999.4, "9999"), (9999.6, "10,000"), (26_844.2, "26,844"),
        (-2.7e6, "-2,700,000"), (1e20, "1e+20"), (float("inf"), "inf"), (float("nan"), "nan"),
        (123_456, "123,456"), (True, "yes"), (None, "-"), ("topk", "topk"),
        ({"value": 26_844.2, "low": 1.0, "high": 30_000.0}, "26,844 [1, 30,000]"),
        ({"value": 0.5, "low": None, "high": None}, "0.5"),
    ],
)  # fmt: skip
def test_a_number_has_four_digits_and_no_power_of_ten_where_nobody_would_write_one(value: object, shown: str) -> None:
    assert number(value) == shown
