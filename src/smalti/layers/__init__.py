"""The networks everything is built from: convolutions in 1, 2 or 3 dimensions, and the one Transformer."""
