"""What a run leaves behind, and what it says of a paper's numbers and claims."""
