"""python -m mossjax COMMAND is the same as mossjax COMMAND."""

from mossjax.cli.main import run

if __name__ == '__main__':
    run()
