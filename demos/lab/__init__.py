"""What demos need and a reader does not: flags, progress, checkpoints, data, reports, pictures."""

import os

# Read when NumPy is first imported. Products as small as the demos' are faster on one thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
