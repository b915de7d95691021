"""The Colab notebook, top to bottom, on the nano weights."""

import json
import pathlib

import pytest

NOTEBOOK = pathlib.Path(__file__).parents[2] / 'experiments/colab/speak_and_evaluate.ipynb'


def text_of(cell) -> str:
    return ''.join(out.get('text', '') for out in cell['outputs'])


@pytest.mark.slow
def test_the_notebook_runs_and_the_judge_understands_its_answers(tmp_path):
    from nbclient import NotebookClient
    import nbformat

    book = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(book, timeout=600, resources={'metadata': {'path': str(tmp_path)}})
    client.execute()
    cells = [cell for cell in book.cells if cell.cell_type == 'code']
    assert 'Python' in text_of(cells[1])  # the doctor's table
    asked, answered, scored = cells[3:6]
    audio = [out for cell in (asked, answered) for out in cell['outputs']
             if 'audio' in str(out.get('data', {}).get('text/html', ''))]
    assert len(audio) == 2
    assert any('image/png' in out.get('data', {}) for out in answered['outputs'])
    content = json.loads((tmp_path / 'scores.json').read_text())
    assert len(content['results']) == 24
    for result in content['results']:
        assert result['speech_right'] == (result['heard'] == result['expected'])
    # Far above chance (4 %): the judge hears right answers in what the notebook plays.
    assert content['summary']['speech_right'] >= 0.5
    assert '24 spoken questions' in text_of(scored)
