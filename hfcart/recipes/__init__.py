"""What a run is asked to do, and finished work read back as the stranger's file it is.

An option of `hfcart merge` is a field of `merge_recipe.Settings`, declared there once.
"""
