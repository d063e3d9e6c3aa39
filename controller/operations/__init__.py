"""One module per kind of operation, each a sequence to be read top to bottom."""
