"""From pixels to vectors: encoders and their weights, features of data sets, regions of images."""
