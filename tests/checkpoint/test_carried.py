"""States that rows carry on, in a checkpoint: a rank reads those of its own rows, and no others."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from whole_runs import reseal

from gam_scale.checkpoint.carried import read_carried, write_carried
from gam_scale.errors import UserError


def carried(path: Path) -> Path:
    for rank in range(2):
        write_carried(path, rank, {"a": torch.full((3, 2), float(rank)), "b": torch.ones(3)})
    reseal(path)
    return path


def test_carried_states_come_from_listed_files_alone(tmp_path):
    carried(tmp_path)
    (tmp_path / "carried-00000 (copy).safetensors").write_bytes(b"x")
    shutil.copy(tmp_path / "carried-00001.safetensors", tmp_path / "carried-00002.safetensors")
    found = read_carried(tmp_path, 2, 4, torch.device("cpu"))
    assert found["a"][:, 0].tolist() == [0, 1, 1, 1], "carried: a file beside the states was read"


def test_any_rows_of_carried_states_are_read_whoever_wrote_them(tmp_path):
    """A rank reads only its own rows: those of all ranks together may not fit its memory."""
    for rank, n in enumerate((3, 1, 4)):
        rows = torch.arange(n, dtype=torch.float32) + 10 * rank
        write_carried(tmp_path, rank, {"a": rows[:, None].expand(n, 2).contiguous(), "b": rows})
    reseal(tmp_path)
    every = [0, 1, 2, 10, 20, 21, 22, 23]
    for start in range(8):
        for rows in range(1, 9 - start):
            found = read_carried(tmp_path, start, rows, torch.device("cpu"))
            assert found["b"].tolist() == found["a"][:, 1].tolist() == every[start : start + rows]
    with pytest.raises(UserError, match="carried states of 8 rows; expected at least 9"):
        read_carried(tmp_path, 1, 8, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["damaged", "another key", "another shape", "too few rows"])
def test_carried_states_that_do_not_fit_are_refused(tmp_path, kind):
    carried(tmp_path)
    file = tmp_path / "carried-00001.safetensors"
    states = load_file(file)
    if kind == "damaged":
        file.write_bytes(b"7" * 100)
    elif kind == "another key":
        save_file({"a": states["a"]}, file)
    elif kind == "another shape":
        save_file(states | {"a": torch.ones(3, 5)}, file)
    else:
        save_file({key: value[:2].clone() for key, value in states.items()}, file)
    reseal(tmp_path)
    with pytest.raises(UserError, match="carried"):
        read_carried(tmp_path, 0, 6, torch.device("cpu"))
