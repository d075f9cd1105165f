"""Tokenizers: what cuts a signal into codes or latents and lays it again."""
