"""How good a saved autoencoder is on held-out data, with intervals."""
