"""What `hfcart demo` and the tests run on: a Hub of one's own, on the loopback interface."""
