"""Captions, images, vocabularies and features: what a model is fed."""
