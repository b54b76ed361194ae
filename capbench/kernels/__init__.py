"""The compute core: one operation a file, each with a reference, the fast paths, and one function that dispatches."""
