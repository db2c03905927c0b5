"""Data: from the name that a user gives to packed token ids (and, in `images`, to pixels).

The life of a token, file by file:

1. `specs`       the name of a data set -> its table: a local file (`rows`), the hub (`hub`), the demo (`demo`)
2. `columns`     which column is read, and whether it holds text, conversations or token ids
3. `documents`   rows -> documents of the training or the held-out split; `content` reads one row, `chat` renders one
4. `tokens`      documents -> token ids, with the role of each token in a conversation
5. `packing`     token ids -> contexts [B, S] with each token's document, position and segment
6. `isolation`   contexts -> the model's inputs, with attention kept inside each segment

`sae.harvest` continues from there.
"""
