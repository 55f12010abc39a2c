"""Tasks that hide sentences in the validation text: a needle, and pairs of key and value."""

from dataclasses import dataclass

from gam_scale.errors import UserError
from gam_scale.evaluate.downstream.task import (
    DownstreamTask,
    Figures,
    Material,
    Measure,
    downstream,
)
from gam_scale.evaluate.interval import Interval
from gam_scale.evaluate.key_values import KeyValues
from gam_scale.evaluate.needle import Needles
from gam_scale.evaluate.scorer import Scorer
from gam_scale.strict import option


@dataclass(frozen=True)
class _Hidden(DownstreamTask):
    lengths: list[int] = option(
        [], "lengths of the texts in tokens; empty: data.seq_len", at_least=1
    )
    trials: int = option(10, "texts of each length", at_least=2)
    candidates: int = option(32, "number of words to choose the answer from", at_least=2)

    def _lengths(self, material: Material) -> list[int]:
        lengths = sorted(set(self.lengths)) or [material.seq_len]
        if lengths[-1] > material.seq_len:
            raise UserError(
                f"lengths has {lengths[-1]}; expected at most the {material.seq_len} tokens that "
                "the model reads"
            )
        return lengths


@downstream("needle")
@dataclass(frozen=True)
class Needle(_Hidden):
    """One sentence in a text; see :class:`~gam_scale.evaluate.needle.Needles`.

    ``gain`` is the number of nats by which the sentence raises the right word's log-probability: 0
    for a model that does not see the sentence, whatever it answers.
    """

    depths: list[float] = option(
        [0.0, 0.5, 1.0],
        "depths of the sentence, each as the share of the text before it",
        at_least=0,
        at_most=1,
    )

    def ready(self, material: Material) -> Measure:
        """See :meth:`DownstreamTask.ready`."""
        if not self.depths:
            raise UserError("depths is empty; expected shares from 0 to 1")
        lengths = self._lengths(material)
        texts = material.documents(lengths[-1])
        counts = self.trials, self.candidates
        made = Needles(material.tokenizer, texts, lengths, self.depths, *counts, material.seed)

        def measure(scorer: Scorer) -> Figures:
            found = made.ask(scorer.last_log_probs)
            gain = sum(cell.gain.mean for cell in found.cells) / len(found.cells)
            return _by_length(found.by_length) | {"gain": gain, "chance": found.chance}

        return measure


@downstream("pairs")
@dataclass(frozen=True)
class Pairs(_Hidden):
    """Several sentences, one asked for; see :class:`~gam_scale.evaluate.key_values.KeyValues`."""

    pairs: int = option(4, "sentences hidden in each text", at_least=2)

    def ready(self, material: Material) -> Measure:
        """See :meth:`DownstreamTask.ready`."""
        lengths = self._lengths(material)
        texts, counts = material.documents(lengths[-1]), (self.trials, self.candidates)
        made = KeyValues(
            material.tokenizer, texts, lengths, [self.pairs], *counts, seed=material.seed
        )

        def measure(scorer: Scorer) -> Figures:
            cells = made.ask(scorer.last_log_probs).cells
            return _by_length([(c.length, c.accuracy) for c in cells]) | {"chance": 1 / self.pairs}

        return measure


def _by_length(accuracies: list[tuple[int, Interval]]) -> Figures:
    """Return ``accuracy`` of the longest texts and, if there are several lengths, of each."""
    figures: Figures = {"accuracy": accuracies[-1][1]}
    if len(accuracies) > 1:
        figures |= {f"accuracy_at_{length}": accuracy for length, accuracy in accuracies}
    return figures
