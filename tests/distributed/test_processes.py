"""What the processes of a run exchange."""

import json

import pytest

from maskx_jax.distributed.processes import from_first_process, gather_objects, gather_parts
from tests.processes import finish, start

# The messages differ in length, and the longest takes several parts of 8 bytes.
PROGRAM = """
import json, pathlib, sys
import jax
from maskx_jax.distributed import processes as distributed
distributed.join(enabled=False)
index, count = jax.process_index(), jax.process_count()
values = [distributed.gather_objects({"index": index, "text": "å" * 10 * index, "large": 2**53 + index})]
distributed._BYTES_ON_DEVICE = 8 * count
values.append(distributed.gather_objects({"index": index, "text": "å" * 10 * index, "large": 2**53 + index}))
values.append(distributed.gather_objects(None))
parts = distributed.gather_parts([b"part %d" % index, b"", b"\\n" * 9] if index < 2 else [])
values.append(parts and [[part.decode() for part in own] for own in parts])
values.append(distributed.gather_parts([]))
(pathlib.Path(sys.argv[1]) / str(index)).write_text(json.dumps(values))
"""


def test_every_process_gets_the_values_of_all_in_order(tmp_path):
    expected = [{"index": i, "text": "å" * 10 * i, "large": 2**53 + i} for i in range(3)]
    assert finish(start("-c", PROGRAM, tmp_path, processes=3, devices=1)) == [0, 0, 0]
    for index in range(3):
        *values, parts, none = json.loads((tmp_path / str(index)).read_text())
        assert values == [expected, expected, [None] * 3]
        # The first process alone gets parts.
        assert parts == ([["part 0", "", "\n" * 9], ["part 1", "", "\n" * 9], []] if index == 0 else None)
        assert none == ([[], [], []] if index == 0 else None)


def test_a_single_process_gets_its_own_value_as_it_is():
    value = object()
    assert gather_objects(value)[0] is value
    parts = [b"one", b"another"]
    assert gather_parts(parts) == [parts]


def test_what_the_first_process_computes_or_meets_reaches_all():
    assert from_first_process(lambda: {"a": [1, None]}) == {"a": [1, None]}
    with pytest.raises(KeyError, match="cause"):
        from_first_process(lambda: {}["cause"])
