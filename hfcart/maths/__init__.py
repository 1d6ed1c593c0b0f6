"""Low-rank approximation and its contract, means in float64, and how far apart towers are."""
