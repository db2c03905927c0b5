"""The codes of a TopK autoencoder: relu of the k largest pre-activations of every token."""
