"""What an audio file really holds, whatever its header says.

Recorders are killed before they write a length, pipes cannot go back to write one, and files are
put one behind the other. Decoders believe the header and stop early, or read the next file's
header as sound. So the bytes are surveyed first: where each recording begins and ends, under a
header that says the truth, and how many samples it must give.
"""
