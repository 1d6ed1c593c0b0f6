"""How each command is called from Python: a file for each function, under the name that `import hfcart` gives it.

The functions call what the commands call, print nothing unless asked to, and tell their errors in Python's words.
Their options, and what the docstrings say of them, are made from the commands' declarations.
"""
