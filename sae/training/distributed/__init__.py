"""Training by several processes under torchrun: one autoencoder on a mesh of data ranks x latent ranks."""
