"""Starting a run on a TPU slice, or on this machine as if it were one; see README.md."""
