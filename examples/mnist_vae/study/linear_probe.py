"""How much of the digits a code holds when it is allowed to hold it in any order, or in any linear way."""

import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]
from torch import Tensor


def best_permutation_accuracy(scores: Tensor, labels: Tensor) -> float:
    """Argmax accuracy once the dimensions are renamed in the best one-to-one way. The labels choose the names.

    Args:
        scores: [N, K].
        labels: [N], in [0, K).
    """
    width = scores.shape[1]
    counts = torch.bincount(labels * width + scores.argmax(dim=1), minlength=width * width).view(width, width)
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return counts[rows, columns].sum().item() / len(labels)


def probe_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Test accuracy of multinomial logistic regression on codes [N, K], fitted to those of the training set."""
    # The penalty is as good as none: it keeps the optimum finite where the digits are separable.
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=10.0, max_iter=1000))
    probe.fit(train.numpy(), train_labels.numpy())
    accuracy: float = probe.score(test.numpy(), test_labels.numpy())
    return accuracy
