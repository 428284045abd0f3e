"""A program that waits only a second for what another node writes, where it waits for half a minute otherwise.

python tests/impatient.py SCRIPT [ARGUMENT ...]
"""

import runpy
import sys
from pathlib import Path

import simpo.folder

simpo.folder.PATIENCE = 1
del sys.argv[0]
sys.path[0] = str(Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
