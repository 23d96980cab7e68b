import jax
import pytest

from maskx_jax.runs import compilation

FOLDER, ENABLED = "jax_compilation_cache_dir", "jax_enable_compilation_cache"


@pytest.fixture(autouse=True)
def restored():
    before = {name: getattr(jax.config, name) for name in (FOLDER, ENABLED)}
    jax.config.update(FOLDER, None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize(
    ("environment", "options", "expected"),
    [
        ({"XDG_CACHE_HOME": "{}/cache"}, {}, "{}/cache/maskx_jax/"),
        ({"HOME": "{}"}, {}, "{}/.cache/maskx_jax/"),
        ({"HOME": "{}"}, {FOLDER: "/elsewhere"}, "/elsewhere"),
        ({"HOME": "{}"}, {ENABLED: False}, "None"),
        # Nothing can be made there.
        ({"HOME": "/proc/nothing"}, {}, "None"),
    ],
)
def test_what_is_compiled_is_kept_in_the_users_cache(tmp_path, monkeypatch, environment, options, expected):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    for name, value in options.items():
        jax.config.update(name, value)
    compilation.use_cache()
    assert str(getattr(jax.config, FOLDER)).startswith(expected.format(tmp_path))
