"""MOSS-Speech in JAX: a speech-to-speech language model with its tokenizer and decoder."""

__version__ = '0.1.0'
