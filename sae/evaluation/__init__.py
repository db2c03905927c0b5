"""How good an autoencoder is: on held-out documents, on the saved weights, every number with an interval."""
