"""What a recording may be called; whether it can be read is for the reader to say."""

SUFFIXES = (
    '3g2', '3gp', 'aac', 'ac3', 'aif', 'aifc', 'aiff', 'amr', 'ape', 'awb', 'caf', 'eac3', 'flac',
    'm4a', 'm4b', 'm4v', 'mka', 'mkv', 'mov', 'mp2', 'mp3', 'mp4', 'mpga', 'oga', 'ogg', 'ogv',
    'opus', 'rf64', 'spx', 'w64', 'wav', 'wave', 'weba', 'webm', 'wma', 'wv',
)  # fmt: skip
