"""The codes of a BatchTopK autoencoder: relu of the N k largest pre-activations of the batch."""
