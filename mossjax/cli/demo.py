"""the tour: the shipped nano checkpoint answers spoken and written questions.

  mossjax demo [--out DIR]

Opens the nano checkpoint that comes with the package, in the file layout of the released one, and
asks it questions in voices and at rates that no training used: speech or text in, speech or text
out, always the likeliest token. An independent recogniser listens to the spoken answers. Printed
beside the scores: what it makes of recorded answers, of the same after speech codes and back, of
answers dealt to the wrong questions, of silence, and of the questions themselves; and the same
four modes for facts that no training audio ever asked about. With the packages of the extra
[sound] other judges say how it sounds, in recordings and in replies: naturalness (DNSMOS), likeness
of the voice, words of any vocabulary (Whisper), PESQ and STOI.

Writes demo.json (every single answer, all figures, versions, hashes of the weights), demo.png
(questions and answers with their codes) and wav files. Needs the extra [eval]; no network.

Examples:
  mossjax demo
  mossjax demo --out demo-output --questions 20
  mossjax demo --check
"""

import dataclasses
import pathlib

from absl import flags

from mossjax import values
from mossjax.cli.common import READ_FOLDER, WRITE_FOLDER, number_flag, path_flag
from mossjax.errors import InputError

FLAGS = flags.FlagValues()
_OUT = path_flag(
    'out', 'demo-output', 'Folder to write to; files of the same names are replaced.',
    WRITE_FOLDER, FLAGS,
)
_QUESTIONS = number_flag(
    'questions', None, 'Questions to ask of each kind of fact instead of all. With fewer than 100 '
    'the gates are not judged.', values.SIZE, FLAGS,
)
_ASSETS = path_flag(
    'assets', None, 'Directory of another packed checkpoint (experiments.nano.ship writes one).',
    READ_FOLDER, FLAGS,
)
_INT8 = flags.DEFINE_bool(
    'int8', False, 'Hold the language model in int8, and print how far that moves it.',
    flag_values=FLAGS,
)
_SOUND = flags.DEFINE_bool(
    'sound', True, 'Say also how it sounds, by the judges of the extra [sound] that are installed.',
    flag_values=FLAGS,
)
_CHECK = flags.DEFINE_bool(
    'check', False, 'End with exit code 1 unless every gate is met.', flag_values=FLAGS
)


def main(args: list[str]) -> int | None:
    if args:
        raise InputError(f'stray argument {args[0]!r}; --out names the folder to write to')
    import tqdm

    from mossjax.convert.int8 import int8
    from mossjax.eval import agreement, demo, demo_files, demo_picture, demo_table, sound_table
    from mossjax.infer.assets import Assets, shipped

    assets = Assets.open(_ASSETS.value or shipped())
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    print(f'Asking the checkpoint of {assets.root}')
    with tqdm.tqdm(demo.STEPS, disable=None, leave=False) as bar:
        steps = iter(bar)

        def show(name: str) -> None:
            next(steps)  # counts the one before as done
            bar.set_description(name)

        tour = demo.tour(
            assets, _QUESTIONS.value, show, int8('float32') if _INT8.value else None
        )
    lines = demo_table.lines(tour.answers, tour.controls)
    paths = demo_files.write_wavs(out, tour)
    record = demo_files.record(assets, tour, lines, paths)
    moved = agreement.of_tour(assets, tour) if _INT8.value else []
    if moved:
        record['int8'] = [dataclasses.asdict(head) for head in moved]
    if _SOUND.value:
        most = min(sound_table.CLIPS, _QUESTIONS.value or sound_table.CLIPS)
        heard, absent = sound_table.figures(tour, assets, most)
        record['sound'] = [dataclasses.asdict(figure) for figure in heard]
    demo_files.write_json(out / 'demo.json', record)
    drawn = demo_picture.draw(out / 'demo.png', tour)
    print(f'\n{demo_table.table(lines)}\n\n{demo_table.stages(assets.report)}\n')
    if _SOUND.value:
        print(f'{sound_table.table(heard, absent)}\n')
    if moved:
        print(f'{agreement.table(moved)}\n')
    picture = 'demo.png, ' if drawn else ''
    seconds = sum(tour.seconds.values())
    print(f'{out}: demo.json, {picture}{sum(map(bool, paths))} answers as wav; {seconds:.0f} s')
    met = demo_table.all_met(lines)
    print('All gates are met.' if met else 'Not all gates are met.')
    return 1 if _CHECK.value and not met else None
