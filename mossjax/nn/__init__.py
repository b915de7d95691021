"""The few building blocks every network is made of, as flax NNX modules used for structure only.

Parameters are plain nested dicts of arrays; `param.describe` turns a module class into a recipe
that makes such a dict (`init`), names its axes (`axes`) and runs the module on it (`bind`).
"""
