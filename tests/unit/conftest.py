"""Interpreted, the 64-bit arithmetic of the compiled code wraps around as it does compiled."""

import numba
import numpy as np

if numba.config.DISABLE_JIT:
    np.seterr(over="ignore")
