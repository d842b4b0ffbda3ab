"""Signing: Merkle trees, signed roots, keys and salts; how evidence is held against them."""
