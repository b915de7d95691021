"""From a folder of recordings to a LoRA that answers in them; README.md is the way there."""
