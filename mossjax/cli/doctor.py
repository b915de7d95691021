"""looks at this machine and says what would go wrong, and how to mend it.

  mossjax doctor

Python and package versions that work together, devices and their memory, host memory, disk,
number of hosts, ports. Ends with exit code 1 if something fails, with 2 if that is JAX_PLATFORMS
as it is set; notes are things to know.

Examples:
  mossjax doctor
  mossjax doctor --disk /mnt/weights
"""

from absl import flags

from mossjax.cli.common import READ_FOLDER, path_flag
from mossjax.errors import InputError

FLAGS = flags.FlagValues()
_WHERE = path_flag('disk', '.', 'Where weights would be written.', READ_FOLDER, FLAGS)


def main(args: list[str]) -> int | None:
    if args:
        raise InputError(f'unexpected argument {args[0]!r}; doctor takes none')
    from mossjax.plan import doctor

    findings = []
    for check in doctor.CHECKS:
        findings += check(_WHERE.value) if check is doctor.disk else check()
    print(doctor.report(findings))
    failed = sum(f.state == doctor.BAD for f in findings)
    print(f'\n{failed} to mend.' if failed else '\nNothing to mend.')
    if any(f.state == doctor.BAD and 'JAX_PLATFORMS' in f.found for f in findings):
        return 2  # as every other command
    return 1 if failed else None
