"""A model or its embeddings in, a table of metrics out."""
