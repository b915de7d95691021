"""The 9.1 B model on TPU pods: the three stages of the paper (arXiv 2510.00499)."""
