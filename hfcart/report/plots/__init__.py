"""The card's figures, drawn from the records alone. The only package that imports matplotlib.

Same record and same matplotlib, same bytes: no dates or versions in the files, no settings of the user's, fonts that
come with matplotlib. The object-oriented API is used throughout, so no state is shared with anyone's pyplot.
"""

from hfcart.report.plots._accuracy import ACCURACY, draw_accuracy
from hfcart.report.plots._merge import draw_figures
from hfcart.report.plots._search import COMPARISON, draw_compare, draw_sweep
from hfcart.report.plots._training import draw_training

__all__ = ["ACCURACY", "COMPARISON", "draw_accuracy", "draw_compare", "draw_figures", "draw_sweep", "draw_training"]
