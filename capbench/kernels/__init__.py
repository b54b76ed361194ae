"""The compute core: an operation a folder, each with a reference, the fast paths, and one function that dispatches."""
