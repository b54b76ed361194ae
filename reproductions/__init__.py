"""One folder a paper. A package here that defines PAPER is discovered; nothing else is edited."""
