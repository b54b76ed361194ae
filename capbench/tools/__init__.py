"""What a trained model does with pictures of one's own: search, caption, align."""
