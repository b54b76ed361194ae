"""How long an operation takes and how much memory it needs, measured and recorded."""
