"""From image features to image embeddings: so many tokens per image, in the decoder's space."""
