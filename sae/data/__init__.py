"""From a name the user gives to packed tokens: documents, tokenization, contexts, and the demo's model and text."""
