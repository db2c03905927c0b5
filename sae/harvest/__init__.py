"""Harvest: from a language model and packed contexts to shuffled batches of activations.

The life of a token, continued from `sae.data`:

1. `language_model`   the model is located and loaded; `traits` finds what it can do, `checks` what it cannot read
2. `sites`            names of places -> hooked modules; `blocks` finds the layers, `places` the parts of one block
3. `hooks`            a forward pass -> activations [B, S, d] at the sites
4. `stream`           packed contexts -> `rows`: one row a token, with its kind; sinks and special tokens are told apart
5. `store`            rows kept for several epochs, in memory or on disk, in the precision that `precision` chooses
6. `buffer`           rows, live or stored -> shuffled training batches

`beginning` settles what begins every segment; `opening` shows the data before a run. `attach` puts autoencoders into a
running model, to read their codes or, by `intervene`, to change activations.
"""
