"""Data: manifests of recordings, packed rows, ArrayRecord data sets and batches by step.

Read order: manifest (what is on disk), recipes (manifest -> examples), rows (examples -> packed
rows), builder (rows -> ArrayRecord), pipeline (rows -> batches of the language model), speech and
codes (batches of the tokenizer and the decoder).
"""
