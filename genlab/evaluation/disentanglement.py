"""Does each dimension of a code stand for one of the factors that the images were made from?"""

from __future__ import annotations

import numpy as np

NUM_BINS = 20
NUM_TREES = 40
NUM_DIMENSIONS = 64


def mutual_information_gap(codes: np.ndarray, factors: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Returns MIG: how much more the best dimension knows of a factor than the second best.

        MIG = mean over factors k of  (I(z_(1); v_k) - I(z_(2); v_k)) / H(v_k)

    from 0 to 1, with z_(1), z_(2) the dimensions of the highest mutual information. Chen et al. 2018
    (arXiv:1802.04942), section 4.1; each dimension is cut into bins of equal width, as in Locatello et al.
    2019 (arXiv:1811.12359).

    Args:
        codes: One row an image.
        factors: Numbers of the factors' values.
        num_bins: Bins of a dimension.

    Shapes:
        codes: (n, d), factors: (n, k), integers.
    """
    from sklearn.metrics import mutual_info_score

    binned = [_binned(column, num_bins) for column in codes.T]
    gaps = []
    for values in factors.T:
        information = sorted((mutual_info_score(column, values) for column in binned), reverse=True)
        second = information[1] if len(information) > 1 else 0.0
        entropy = mutual_info_score(values, values)
        gaps.append((information[0] - second) / entropy if entropy > 0 else 0.0)
    return float(np.mean(gaps))


def importance_scores(importance: np.ndarray) -> tuple[float, float]:
    """Returns DCI's disentanglement and completeness of a matrix of importances.

        D = sum_i rho_i (1 - H_K(P_i)),   P_ik = R_ik / sum_k R_ik,   rho_i = sum_k R_ik / sum_ik R_ik
        C = sum_k w_k (1 - H_D(P'_k)),    P'_ik = R_ik / sum_i R_ik,  w_k = sum_i R_ik / sum_ik R_ik

    with entropies in the base of the number of factors, or of dimensions. Eastwood and Williams 2018, section
    2: D is 1 where each dimension matters for one factor, C where each factor needs one dimension.

    Shapes:
        importance: (d, k), not negative: of dimension i for factor k.
    """
    return _one_minus_entropy(importance), _one_minus_entropy(importance.T)


def dci(
    codes: np.ndarray, factors: np.ndarray, test_codes: np.ndarray, test_factors: np.ndarray
) -> dict[str, float]:
    """Returns DCI's disentanglement `dci`, `completeness`, and `informativeness`: accuracy on unseen images.

    The importances are those of a random forest for each factor, whose branches choose among all dimensions,
    or among 64 where there are more.

    Shapes:
        codes: (n, d), factors: (n, k); test_codes, test_factors: the same of unseen images.
    """
    from sklearn.ensemble import RandomForestClassifier

    importances, accuracies = [], []
    width = min(codes.shape[1], NUM_DIMENSIONS)
    for values, test_values in zip(factors.T, test_factors.T, strict=True):
        forest = RandomForestClassifier(NUM_TREES, max_features=width, min_samples_leaf=5, random_state=0)
        forest.fit(codes, values)
        importances.append(forest.feature_importances_)
        accuracies.append(float((forest.predict(test_codes) == test_values).mean()))
    disentanglement, completeness = importance_scores(np.stack(importances, axis=1))
    return {
        "dci": disentanglement,
        "completeness": completeness,
        "informativeness": float(np.mean(accuracies)),
    }


def _binned(column: np.ndarray, num_bins: int) -> np.ndarray:
    edges = np.linspace(column.min(), column.max(), num_bins + 1)
    return np.digitize(column, edges[1:-1])


def _one_minus_entropy(weights: np.ndarray) -> float:
    total = weights.sum()
    if total <= 0:
        return 0.0
    if weights.shape[1] < 2:
        return 1.0
    rows = weights.sum(axis=1)
    share = weights[rows > 0] / rows[rows > 0, None]
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1) / np.log(weights.shape[1])
    return float((rows[rows > 0] / total * (1.0 - entropy)).sum())
