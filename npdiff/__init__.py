"""npdiff: diffusion models from scratch, on NumPy or CuPy.

Read the files in the order that README.md gives.
"""

__version__ = "0.1.0"
