"""Scores of a model, and how sure they are."""
