"""The variants of the sparse autoencoder, each a row: a code, loss terms, and how it likes to be trained."""
