"""Ground truth: activations made of known features, and how well an autoencoder recovers them."""
