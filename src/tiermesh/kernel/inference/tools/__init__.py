"""Tools: what a request defines, how a model family is told of them, and how its calls are read and enforced."""
