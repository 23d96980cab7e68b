"""Flags that name no field or no variant: one line that says which, and what comes near."""

import pytest
from absl import flags

from maskx_jax.cli.flags import define_config, parse

# Of ml_collections, as it imports the config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # A field and a section that are misspelt, and the section of another family.
        ([":size=tiny", "--config.train.batchsize=3"], "names no field: 'batchsize' Did you mean \"batch_size\""),
        ([":size=tiny", "--config.modl.dtype=bfloat16"], "names no field: 'modl' Did you mean \"model\" instead"),
        ([":size=tiny", "--config.model.rcnn.mask_predictor=none"], "names no field: 'rcnn'"),
        ([":size=tiny,form=arxiv"], "flag --config=configs/fcos.py:size=tiny,form=arxiv: ValueError: unknown variant"),
        ([":size=tiny", "--config.train.num_steps=many"], "flag --config.train.num_steps=many: "),
    ],
)
def test_what_names_nothing_is_one_line(arguments, message):
    variants, *others = arguments
    argv, values = ["train.py", f"--config=configs/fcos.py{variants}", *others], flags.FlagValues()
    define_config(values, argv)
    with pytest.raises(ValueError) as caught:
        parse(values, argv, "")
    said = str(caught.value)
    assert message in said and not any(text in said for text in ("Traceback", "\n", "\\n"))
