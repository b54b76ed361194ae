"""A run: a preset of a paper on a data set, with an encoder and a seed, made or loaded again."""
