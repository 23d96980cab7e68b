import pytest

from maskx_jax.limits import number, numbers, one_of, optional, some_numbers


@pytest.mark.parametrize(
    ("check", "value", "expected"),
    [
        (one_of("a", 2), 2, ""),
        (one_of("a", 2), "b", "one of a, 2"),
        (number(0, 1), 1, ""),
        (number(0, 1), 1.5, "0 to 1"),
        (number(1), 0, "1 or more"),
        (number(1), "2", "1 or more"),
        (number(1), (1, 2, 0), "1 or more"),
        (number(1), (), ""),
        (numbers(2, 1), (1, 2), ""),
        (numbers(2, 1), (1, 2, 3), "2 values"),
        (numbers(2, 1), (1, 0), "1 or more"),
        (some_numbers(0), (), "one or more"),
        (some_numbers(0), (1,), ""),
        (optional(number(1)), None, ""),
        (optional(number(1)), 0, "1 or more"),
    ],
)
def test_a_check_says_what_was_expected(check, value, expected):
    assert check(value) == expected
