"""Low-rank approximation and its contract, means in float64, and how far apart towers are.

Tensors and numbers: no files, no Hub. `low_rank` is the only importer of scipy.
"""
