"""Settings of all tests."""

import os
from pathlib import Path

# Small tensors gain nothing from more threads, and two test runs side by side would wait for each
# other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Processes that tests start find this tree wherever they run, and packages where this one has them.
_path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(_path)
