"""The local stack: real parts on one Linux machine, for `make demo` and for the tests' fixtures."""
