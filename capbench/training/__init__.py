"""How a model is fitted: the one loop, what it is given, and what it keeps."""
