import jax
import pytest

from maskx_jax.ops.cpu import platform


@pytest.mark.parametrize(("backend", "devices", "expected"), [("cpu", 1, True), ("cpu", 8, False), ("gpu", 1, False)])
def test_one_cpu_device_is_one_cpu(monkeypatch, backend, devices, expected):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert platform.on_one_cpu() == expected


def test_equal_pieces_are_as_large_as_the_limit_allows():
    assert [platform.largest_divisor(12, limit) for limit in (0, 1, 5, 6, 20)] == [1, 1, 4, 6, 12]
