"""docs/config.md is current, and has every field."""

import pytest

from configs.families import dense, rcnn
from tools import document_config


def paths_of(mapping, prefix=""):
    for name, value in mapping.items():
        if isinstance(value, dict):
            yield from paths_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_the_page_is_current():
    assert document_config.PAGE.read_text() == document_config.page(), "run `python -m tools.document_config`"


@pytest.mark.parametrize("family", [rcnn, dense])
def test_every_field_of_a_config_is_found(family):
    files = ("base.py", f"families/{family.__name__.rpartition('.')[2]}.py")
    found = [field for file in files for field in document_config.fields_of(document_config.ROOT / "configs" / file)]
    paths = {field.path for field in found if field.value is not None}
    # A family sets it again.
    assert set(paths_of(family.get_config().to_dict())) == paths


def test_comments_and_docstrings_are_read(tmp_path):
    (tmp_path / "some.py").write_text(
        "def get_config():\n"
        "    config = base.get_config()\n"
        "    # A section\n"
        "    # of two lines.\n"
        "    config.some = ConfigDict({\n"
        "        # First.\n"
        '        "first": (1,\n'
        "                  2),\n"
        '        "inner": {"second": may_change(config_dict.placeholder(int))},\n'
        "    })\n"
        "    return config\n"
    )
    assert list(document_config.fields_of(tmp_path / "some.py")) == [
        document_config.Field("some", None, "A section of two lines."),
        document_config.Field("some.first", "(1, 2)", "First."),
        document_config.Field("some.inner", None, ""),
        document_config.Field("some.inner.second", "None", "", may_change=True),
    ]
    meanings = document_config.docstring_fields(document_config.EXPLAINED_BY["data.transform"])
    assert meanings["num_slots"] == "ground-truth slots of an image."
