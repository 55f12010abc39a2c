"""A cell of a sweep: where it branches off, and its row of the collected CSV."""

from dataclasses import dataclass, replace
from pathlib import Path

from gam_scale.checkpoint.state import load_state
from gam_scale.config import load_config
from gam_scale.errors import UserError
from gam_scale.experiment.cell import Cell, Row, changed_setting
from gam_scale.files import write_json
from gam_scale.run.branch import newest_shared
from gam_scale.run.directory import RunDir
from gam_scale.run.figures import read_summary
from gam_scale.strict import read_json, to_dict


@dataclass(frozen=True, kw_only=True)
class SweepCell(Cell):
    """One run of a sweep; its run directory lies in the sweep's folder."""

    family: str
    width: int
    flops_budget: float | None
    """Where the sweep's file says FLOPs; those of whole steps are about as many."""
    count: str
    """What its parameters are: ``count`` of the sweep's file."""
    lr_multiplier: float = 1.0
    other_context: bool = False
    """Whether its texts have another length than the grid's."""

    @property
    def name(self) -> str:
        """Of its folder: what differs between cells."""
        name = f"{self.family}-d{self.width}-t{self.tokens}-s{self.seed}"
        if self.other_context:
            name += f"-c{self.config.data.seq_len}"
        return name if self.lr_multiplier == 1 else f"{name}-lr{self.lr_multiplier:g}"

    @property
    def of_the_grid(self) -> bool:
        """Whether a law may be fitted to it: no other learning rate, no other length of texts."""
        return self.lr_multiplier == 1 and not self.other_context

    @property
    def params(self) -> int:
        """As ``count`` says."""
        model, total = self.model, self.model.n_parameters()
        if model.position is not None:
            total -= model.position.weight.numel()
        if model.head is not None:  # the embedding is looked up, at no FLOPs
            total -= model.embedding.weight.numel()
        return total - (self.model.head_weight.numel() if self.count == "blocks" else 0)

    def write_config(self) -> Path:
        """The config as a file that tools/pretrain.py takes, checked as a whole.

        It branches off the finished run of the same settings that shares most steps with it; where
        there is none, off its trunk if that is still to come. So a budget that is added later goes
        on from what is there, be it above or below the others.
        """
        path, checkpoint = self.config_path, self.config.checkpoint
        path.parent.mkdir(parents=True, exist_ok=True)
        trunk = checkpoint.branch_of
        if trunk and (Path(trunk) / "summary.json").exists():
            trunk = ""
        checkpoint = replace(checkpoint, branch_of=self._finished_trunk() or trunk)
        write_json(path, to_dict(replace(self.config, checkpoint=checkpoint)))
        load_config(path)
        return path

    def _finished_trunk(self) -> str:
        """The finished run of other steps that kept the newest state that this one shares."""
        newest, trunk = -1, ""
        same_but_tokens = self.name.replace(f"-t{self.tokens}-", "-t*-")
        for folder in self.folder.glob(same_but_tokens):
            run = RunDir(folder)
            if folder == self.run_dir or not run.summary.exists() or run.difference(self.config):
                continue
            shared = newest_shared(run, self.config)
            if shared is not None and (step := load_state(shared).step) > newest:
                newest, trunk = step, str(folder)
        return trunk

    def row(self) -> Row | None:
        """Its row of the collected CSV; None while it is not finished.

        Raises:
            UserError: the run was made with other settings than the sweep's now.
        """
        run = RunDir(self.run_dir)
        if not run.summary.exists():
            return None
        if key := changed_setting(read_json(run.config), self.config, ("model", "train")):
            raise UserError(
                f"{run.path} was trained with another {key} than the sweep has now; expected the "
                "same settings, or another --out"
            )
        summary, train = read_summary(run.summary), self.config.train
        return {
            "params": self.params,
            "tokens": self.tokens,
            "loss": summary.get("val_loss"),
            "flops": self.flops,
            "family": self.family,
            "seed": self.seed,
            # Budgets of one size and seed share weights, data and, as branches, most steps.
            "run": f"{self.family}-d{self.width}-s{self.seed}",
            "all_params": self.model.n_parameters(),
            "width": self.width,
            "layers": self.config.model.n_layers,
            "flops_budget": self.flops_budget,
            "lr": train.lr,
            "lr_multiplier": self.lr_multiplier,
            "batch": train.global_batch_size,
            "steps": train.steps,
            "warmup_steps": train.warmup_steps,
            "seq_len": self.config.data.seq_len,
            "late_loss": summary.get("val_late_loss"),
            "bits_per_byte": summary.get("val_bits_per_byte"),
            "code_version": summary.get("code_version", ""),
        }
