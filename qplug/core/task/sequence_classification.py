"""Classification of texts, or of pairs of texts."""

from __future__ import annotations

from torch import Tensor

from qplug.core.task.classification import Classification


class SequenceClassification(Classification):
    """Outputs (N, classes), labels (N,) int64; two classes are also judged by F1, as GLUE judges MRPC and QQP.

    F1 is that of class 1, by scikit-learn; 0 if no example has class 1 or is predicted to.
    """

    name = "sequence_classification"
    causes = "the labels (label_column), the tokenizer, or the checkpoint"

    def metrics(self, float_: Tensor, quantized: Tensor, labels: Tensor) -> dict[str, float]:
        """Those of ``Choices``, with ``float.f1`` and ``quantized.f1`` of two classes."""
        found = super().metrics(float_, quantized, labels)
        if float_.shape[1] != 2:
            return found
        from sklearn.metrics import f1_score

        own = (("float", float_), ("quantized", quantized))
        return found | {
            f"{name}.f1": float(f1_score(labels, self.predictions(outputs), zero_division=0)) for name, outputs in own
        }
