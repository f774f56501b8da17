"""Lets tests import their helpers as `tests.scheduler.*` from wherever pytest was started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
