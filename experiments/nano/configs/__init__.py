"""Every training run of the nano recipe, as config files of `mossjax train`.

Paths are relative to the directory of the recipe (its `--workdir`), from which they are run:

    cd runs/nano && mossjax train --config .../configs/sft.py --workdir sft
"""
