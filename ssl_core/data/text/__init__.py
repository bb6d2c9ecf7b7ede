"""Texts: where they come from, their tokenizer, and their tokens."""
