"""Settings of all tests."""

import os

# Small tensors gain nothing from more threads, and two test runs side by side would wait for each
# other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
