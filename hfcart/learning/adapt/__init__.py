"""Coefficients learned on unlabelled images: CART++ (arXiv 2412.12153, Eq. 6) and AdaMerging(++) (2310.02575).

With them, which singular directions stay: AdaRank (2503.22178).
"""
