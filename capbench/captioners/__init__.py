"""Models that write captions: what they share, how they are trained, scored and decoded."""
