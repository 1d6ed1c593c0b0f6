"""What `hfcart demo` runs on: the tour, the toy towers and their pictures, and a Hub of one's own.

The tests use the towers and the Hub as well; no other room does.
"""
