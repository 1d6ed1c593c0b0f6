"""Task cards, and the datasets behind them: `data`, the only importer of datasets and pyarrow."""
