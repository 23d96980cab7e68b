"""Run train.py or eval.py with the toys registered: python -m tests.toy.program train.py --config=..."""

import runpy
import sys

from tests.processes import ROOT
from tests.toy import register

register()
sys.argv = [str(ROOT / sys.argv[1]), *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
