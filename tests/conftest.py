"""Set before torch is imported, as main.py does: threads that wait must not spin on a machine that others use too."""

import os

os.environ["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
