"""The compute core, an operation a folder: its public function, its equation, its CPU path and its Triton kernel."""
