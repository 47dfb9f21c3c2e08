import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3agiqa import InputError
from m3agiqa.json_lines import read_json_lines

separators = st.sampled_from(["\u2028", "\u2029", "\x85", "\x0b", "\x1e", "\n", "\r"])


@given(texts=st.lists(st.lists(separators | st.text(max_size=4), max_size=4).map("".join), max_size=5))
def test_any_text_comes_back(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("lines") / "file.jsonl"
    encoded = [json.dumps(text, ensure_ascii=False) for text in texts]
    path.write_text("".join(line + "\n" for line in encoded), encoding="utf-8")
    assert [value for _, value in read_json_lines(path)] == texts


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    with pytest.raises(InputError, match="Cannot read"):
        list(read_json_lines(path))
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(InputError, match="line 3 is not JSON"):
        list(read_json_lines(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not a UTF-8"):
        list(read_json_lines(path))
