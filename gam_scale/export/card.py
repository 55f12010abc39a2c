"""The model card of an exported folder, made of what its checkpoint and its run say."""

from collections import Counter
from typing import Any

from gam_scale.checkpoint.load import Trained
from gam_scale.config.names import set_names
from gam_scale.config.stages import Stage, stages_of
from gam_scale.evaluate.loss import perplexity
from gam_scale.run.metrics_file import is_known_and_finite, read_metrics

_LOAD = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)
ids = tokenizer("Once upon", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=40)[0], skip_special_tokens=True))
```

transformers 5 is needed (tried: 5.23.0 and 5.24.0); 4.x is refused. `trust_remote_code` runs the
Python files of this folder; gam_scale itself need not be installed."""


def model_card(trained: Trained, folder: str) -> str:
    """Return README.md of the folder called ``folder``, with the header that the hub reads."""
    parts = {
        "Training": _table(_training(trained)),
        "Validation": _table(_losses(trained)),
        "How to load it": _LOAD.format(folder=folder),
        "Limits": "\n".join(f"* {line}" for line in _limits(trained)),
    }
    said = "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items() if text)
    return f"{_header(trained)}\n# {folder}\n\n{_what(trained)}\n\n{said}\n"


def _header(trained: Trained) -> str:
    kinds = sorted({layer.kind for layer in trained.config.model.stack()})
    tags = "".join(f"- {tag}\n" for tag in ("gam-scale", *kinds))
    return f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n{tags}---\n"


def _what(trained: Trained) -> str:
    model = trained.config.model
    count = sum(p.numel() for p in trained.model.parameters())
    layers = Counter(layer.kind for layer in model.stack())
    named = ", ".join(f"{n} of {kind}" for kind, n in layers.items())
    return (
        f"A causal language model of {count:,} parameters, trained with GAM Scale (Gated "
        f"Associative Memory, arXiv 2509.00605): {model.n_layers} layers ({named}), "
        f"width {model.d_model}, {model.vocab_size:,} tokens, positions: {model.position}."
    )


def _training(trained: Trained) -> dict[str, Any]:
    train, data = trained.config.train, trained.config.data
    stages = [s for s in stages_of(trained.config) if s.first_step < trained.step]
    tokens = sum(_steps(s, trained.step) * s.tokens_per_step for s in stages)
    if not data.sets or not stages:  # not trained here
        return {"steps": trained.step or None}
    return {
        "data": ", ".join(set_names(data)),
        "steps": f"{trained.step:,} of {train.steps:,}" if train.steps else f"{trained.step:,}",
        "tokens seen": f"{tokens:,}",
        "tokens in a sequence": _each(s.seq_len for s in stages),
        "sequences in a batch": _each(s.global_batch_size for s in stages),
        "documents": data.documents,
        "optimizer": train.optimizer,
        "learning rate": f"{train.lr:g}, {train.schedule}, {train.warmup_steps} steps of warm-up",
        "weight decay": f"{train.weight_decay:g}",
        "dropout": f"{trained.config.model.dropout:g}",
        "precision": train.precision,
    }


def _steps(stage: Stage, step: int) -> int:
    return min(step - stage.first_step, stage.steps or step)


def _each(values: Any) -> str:
    return ", then ".join(f"{value:,}" for value in dict.fromkeys(values))


def _losses(trained: Trained) -> dict[str, Any]:
    """Return the results of the run's last validation up to the checkpoint's step."""
    lines = read_metrics(trained.path.parent.parent / "metrics.jsonl")
    for line in reversed([one for one in lines if one.get("step", 0) <= trained.step]):
        loss = line.get("val_loss")
        if loss is not None and is_known_and_finite(loss):
            bits = line.get("val_bits_per_byte")
            return {
                "at step": f"{line['step']:,}",
                "loss, nats a token": f"{loss:.4f}",
                "perplexity": f"{perplexity(loss):.2f}",
                "bits per byte": f"{bits:.4f}" if is_known_and_finite(bits) else None,
            }
    return {}


def _limits(trained: Trained) -> list[str]:
    limit = trained.model.context_limit
    longest = max(s.seq_len for s in stages_of(trained.config) if s.first_step <= trained.step)
    lines = [
        f"It was trained on sequences of up to {longest:,} tokens; longer ones were not tried."
    ]
    if limit is not None:
        lines.append(f"It takes {limit:,} tokens at most.")
    if not trained.config.data.chat_template:
        lines.append("It continues text. Nothing was done to make it follow instructions.")
    lines.append("Nothing was done to keep it from saying what is false or harmful.")
    lines.append("Its states cannot go back: assisted generation and cropping are refused.")
    return lines


def _table(rows: dict[str, Any]) -> str:
    rows = {name: value for name, value in rows.items() if value is not None}
    lines = "".join(f"\n| {name} | {value} |" for name, value in rows.items())
    return f"| | |\n|---|---|{lines}" if rows else ""
