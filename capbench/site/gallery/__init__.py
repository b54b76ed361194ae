"""Galleries: what finished runs make of the test pictures of their data, a page a run, and two runs side by side."""
