"""The lengths that programs are compiled for, and the room that a prompt leaves."""

from mossjax.errors import InputError

SMALLEST = 64  # rows
PIECES = (64, 256)  # rows of a prompt that are read at once: the largest bounds its scores
LANE = 1024  # slots of a lane before it grows
LONG = 8192  # rows of a dialogue that memory is kept for: eleven minutes
STEPS = 8  # rows that are made before the host looks
LISTEN = 32  # rows heard that are read while more is heard: what is left then fits one piece
WAIT = 64  # rows that the idle branch may stay behind


HEARING = (8, 16, 32, 64, 128, 256, 375)  # codes of a recording that is heard whole: up to 30 s


def hearing(codes: int) -> int:
    """Codes that a recording is padded to, of 30 s at most."""
    return next((size for size in HEARING if size >= codes), codes)


def lane_sizes(rows: int, positions: int) -> list[int]:
    """All that `slots` says of dialogues that grow to so many rows."""
    sizes = [slots(1, positions)]
    while sizes[-1] < rows:
        sizes.append(slots(sizes[-1] + 1, positions))
    return sizes


def piece(rows: int) -> int:
    """Length of the next piece when that many rows are to be read; it may be longer than they."""
    return next((size for size in PIECES if size >= rows), PIECES[-1])


def slots(rows: int, positions: int) -> int:
    """Rows that a lane gets room for: a power of two, LANE at least, no more than positions."""
    return min(max(LANE, 1 << (rows - 1).bit_length()), positions)


def room(prompt: int, wanted: int, positions: int) -> int:
    """Rows that a reply may have: `wanted`, or what a prompt leaves of the model's positions.

    What is left counts from the end of the prompt's last SMALLEST rows, unless nothing were left
    then: dialogues of about one length end alike.

    Raises:
      InputError: the prompt leaves nothing.
    """
    if prompt + wanted <= positions:
        return wanted
    if prompt >= positions:
        raise InputError(
            f'a prompt of {prompt} rows (12.5 a second of speech) leaves no room for a reply in '
            f'the {positions} positions of the model; shorten it'
        )
    rounded = -(-prompt // SMALLEST) * SMALLEST
    return positions - (rounded if rounded < positions else prompt)
