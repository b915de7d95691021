"""How a training run says in its exit code how it ended.

Whoever started the run acts on nothing else: `launch` starts it again after AGAIN or when a host
was lost, and leaves it alone after the others.
"""

OK = 0  # all steps are done
BAD_INPUT = 2  # a flag, file, config, checkpoint or disk: the same command would end the same way
WENT_WRONG = 3  # the run itself: losses that are not finite, for example
AGAIN = 75  # saved, and wants to go on (sysexits' EX_TEMPFAIL): told to stop, a bucket out of reach
