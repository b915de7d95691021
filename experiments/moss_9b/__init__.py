"""The 9.1 B model on TPU pods: the three stages of the paper (arXiv 2510.00499), and LoRA.

Each file takes the name of a slice: `--config experiments/moss_9b/stage2.py:v5p-128`.
"""
