"""The codes of a JumpReLU autoencoder: the pre-activations above a threshold."""
