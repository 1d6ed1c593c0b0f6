"""Task cards, and the datasets behind them."""
