"""One module per kind of operation, each a sequence that reads from top to bottom, and the engine that runs them."""
