"""The variants, each a row: a code, loss terms, and how it is trained. Settings are in `sae.config.variants`."""
