"""What the computation runs on, where that decides how it is best written."""

import jax


def on_one_cpu() -> bool:
    """Say whether this process computes on a single CPU device.

    There work is done one piece after the other, and what is cut into pieces that fit the cache, or left out, is won.
    Several CPU devices stand for other accelerators: a batch that is split over them is not to be cut anew.
    """
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor that is not above the limit, or 1: the size of equal pieces."""
    return max(d for d in range(1, number + 1) if number % d == 0 and d <= max(limit, 1))
