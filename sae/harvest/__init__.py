"""From a transformers model to a stream of activations: sites name places, hooks read and replace what flows there."""
