"""A whole training step without an F x d gradient in memory."""
