"""The folder, beside the set's own, in which a preparation by many processes keeps its work."""

import io
import pickle
import shutil
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import gam_scale
from gam_scale.data.prepare import TOKENIZER_FILE, PrepareSpec
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.data.tokenizer_file import load_tokenizer
from gam_scale.errors import UserError
from gam_scale.files import write_bytes, write_json
from gam_scale.preparation.parts import Part, cut_up
from gam_scale.preparation.verdicts import Verdict
from gam_scale.run.lock import lock_path
from gam_scale.strict import read_json

BEGUN = "begun.json"
STAGES = ("measured", "sampled", "tokenised", "sharded")
"""The stages in order; each has a folder of this name for its finished items."""

PACKAGES = ("gam_scale", "pathlib")
"""Packages of the classes that the pickled parts and settings are made of."""


@dataclass(frozen=True)
class Folder:
    """The folder of the preparation of one set.

    It holds ``begun.json`` (what the set is made from), the parts and the settings as pickles, a
    folder for each of :data:`STAGES`, the verdicts over documents, and the folder ``set``, which
    becomes the set. Processes on many hosts read it and write to it.
    """

    path: Path

    @classmethod
    def of(cls, out: Path) -> "Folder":
        """Return the preparation folder of the set ``out``."""
        return cls(out.with_name(f".{out.name}.submitted"))

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def set(self) -> Path:
        """The folder that becomes the set."""
        return self.path / "set"

    @property
    def jobs(self) -> Path:
        """The folder of the tasks' inputs and logs."""
        return self.path / "jobs"

    def is_begun(self, spec: PrepareSpec) -> bool:
        """Return whether an earlier command began the preparation from an equal ``spec``.

        Raises:
            UserError: the preparation was begun from something else, and ``spec.overwrite`` is not
                set.
        """
        if not (self / BEGUN).exists():
            return False
        same = read_json(self / BEGUN) == _made_of(spec)
        if not same and not spec.overwrite:
            raise UserError(
                f"{spec.out}: its preparation was begun from other inputs or settings; "
                "expected the same ones, another --out, or --overwrite to begin anew"
            )
        return same

    def begin(self, spec: PrepareSpec) -> None:
        """Set the folder up for a new preparation, or to go on with one that :meth:`is_begun`."""
        goes_on = self.is_begun(spec)
        if not goes_on:
            self.clear()
        for name in (*STAGES, "verdicts", "set", "jobs"):
            (self / name).mkdir(exist_ok=True)
        write_bytes(self / "spec.pickle", pickle.dumps(spec))
        if not goes_on:
            write_bytes(self / "parts.pickle", pickle.dumps(cut_up(spec)))
            write_json(self / BEGUN, _made_of(spec))

    def clear(self) -> None:
        """Remove all but the lock."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != lock_path(self.set):
                path.unlink()

    @cached_property
    def spec(self) -> PrepareSpec:
        """The settings of the preparation."""
        return _read(self / "spec.pickle")

    @cached_property
    def parts(self) -> list[Part]:
        """The parts of all sources."""
        return _read(self / "parts.pickle")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The set's tokenizer, once it is there."""
        return load_tokenizer(self.set / TOKENIZER_FILE, None)

    def shard(self, item: str) -> Path:
        """Return the shard that an item of the last stage writes."""
        split, number, *_ = item.split("-")
        return self.set / split / f"shard.{number}.mds"

    @property
    def is_judged(self) -> bool:
        """Whether a pass over all documents comes before the one that tokenises them."""
        spec = self.spec
        holds_out = bool(spec.valid_fraction) and not spec.valid
        trains = spec.tokenizer is None
        return bool(spec.filters.describe() or holds_out or trains or spec.max_documents)

    def verdict(self, part: Part) -> Verdict | None:
        """Return what becomes of a part's documents; None: all stay, and none is held out."""
        if not self.is_judged:
            return None
        return Verdict.load(self / "verdicts" / f"{part.number:05d}.npz")


def _made_of(spec: PrepareSpec) -> dict[str, Any]:
    return {"source": spec.describe(), "code": gam_scale.__version__}


def _read(path: Path) -> Any:
    return _OwnAlone(io.BytesIO(path.read_bytes())).load()


class _OwnAlone(pickle.Unpickler):
    """Unpickles only paths and this package's dataclasses, and nothing that could run code.

    Others may be able to write to the folder.
    """

    def find_class(self, module: str, name: str) -> Any:
        """See :class:`pickle.Unpickler`."""
        if module.partition(".")[0] in PACKAGES:
            found = super().find_class(module, name)
            if isinstance(found, type) and (is_dataclass(found) or issubclass(found, PurePath)):
                return found
        raise UserError(f"a preparation's folder names {module}.{name}, which no preparation wrote")
