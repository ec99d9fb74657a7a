"""How far a set of generated images is from a set of real ones, by the features of a named network.

All functions take features (see `stylegan2.features`), one row per image. Numbers of different networks
cannot be compared, so the network's name stands in results; only Inception's Fréchet distance is called FID.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.linalg
import scipy.spatial.distance
import scipy.stats
from numpy.typing import NDArray

from stylegan2.errors import StyleGAN2Error
from stylegan2.features import EFFICIENTNET, INCEPTION

Features = NDArray[np.floating[Any]]
Matrix = NDArray[np.float64]

# Rows of a pairwise matrix held at a time: memory grows with the number of images, not its square.
BLOCK = 1024
KID_METHOD = "delete-1 jackknife over the images of both sets, Student's t"
# Naeem et al. recommend 5, Kynkäänniemi et al. use 3 for 50,000 images; one k serves all four numbers.
DEFAULT_K = 5


@dataclasses.dataclass(frozen=True)
class KidResult:
    """Kernel distance of two sets.

    Attributes:
        value: unbiased estimate; below 0 by chance when the sets are alike.
        lo: lower end of the confidence interval; None with fewer than 3 images in a set.
        hi: upper end.
        standard_error: of `value` over new draws of both sets; None like `lo`.
        standard_error_fake: over new draws of the generated images alone: what counts when generators are
            compared on one real set; None like `lo`.
        confidence: of the interval.
        method: how the interval was computed.
        kernel: in words.
        network_name: of the features.
        real_count: images in the real set.
        fake_count: images in the generated set.
    """

    value: float
    lo: float | None
    hi: float | None
    standard_error: float | None
    standard_error_fake: float | None
    confidence: float
    method: str
    kernel: str
    network_name: str
    real_count: int
    fake_count: int


@dataclasses.dataclass(frozen=True)
class KidFloor:
    """Kernel distances of real images from real images: random halves of one set.

    Attributes:
        mean: over the splits; its expectation is exactly 0, as the estimator is unbiased.
        standard_deviation: over the splits: what chance alone does to sets of half the size.
        upper: its quantile `confidence`: halves of the real set rarely differ by more.
        confidence: of `upper`.
        repeats: number of splits.
        half_count: images in the smaller half.
        network_name: of the features.
    """

    mean: float
    standard_deviation: float
    upper: float
    confidence: float
    repeats: int
    half_count: int
    network_name: str


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Shares of images inside the other set's manifold, 0..1, by the k-th nearest neighbours."""

    precision: float
    recall: float
    k: int


@dataclasses.dataclass(frozen=True)
class DensityCoverage:
    """Density and coverage by the k-th nearest neighbours among the real images.

    Attributes:
        density: real neighbourhoods a generated image lies in, over k; about 1 for equal distributions, maybe
            more.
        coverage: share of real images with a generated one in their neighbourhood, 0..1.
        coverage_of_equals: expected coverage if both sets came from one distribution: what can be reached.
        k: number of neighbours.
    """

    density: float
    coverage: float
    coverage_of_equals: float
    k: int


@dataclasses.dataclass(frozen=True)
class SetComparison:
    """All distances of two image sets.

    Attributes:
        network_name: of the features.
        real_count: images in the real set.
        fake_count: images in the generated set.
        kid: kernel distance.
        kid_floor: real against real; None with fewer than 4 real images.
        frechet_distance: squared; FID when the network is Inception. Biased upwards for few images, so
            comparable only at equal counts.
        precision_recall: Kynkäänniemi et al.
        density_coverage: Naeem et al.
    """

    network_name: str
    real_count: int
    fake_count: int
    kid: KidResult
    kid_floor: KidFloor | None
    frechet_distance: float
    precision_recall: PrecisionRecall
    density_coverage: DensityCoverage

    def as_dict(self) -> dict[str, Any]:
        """Give plain values for JSON; `frechet_distance` is named `fid` for Inception and only then."""
        values = dataclasses.asdict(self)
        if self.network_name == INCEPTION:
            values = {"fid" if name == "frechet_distance" else name: value for name, value in values.items()}
        return values


def compare_image_sets(
    real_features: Features,
    fake_features: Features,
    network_name: str,
    k: int = DEFAULT_K,
    *,
    confidence: float = 0.95,
    floor_repeats: int = 200,
    seed: int = 0,
) -> SetComparison:
    """Compute all distances between a real and a generated set.

    Args:
        real_features: [N, D] of the network.
        fake_features: [M, D].
        network_name: as of the `FeatureNetwork` that computed them.
        k: neighbours that precision, recall, density and coverage use; below N and M.
        confidence: of the interval and of the floor's upper end.
        floor_repeats: random halvings of the real set for the floor.
        seed: of the halvings.

    Raises:
        StyleGAN2Error: naming all that is wrong with features or arguments.
    """
    options: dict[str, Any] = {"network_name": network_name, "confidence": confidence}
    real, fake = _checked(real_features, fake_features, k=k, repeats=floor_repeats, **options)
    floor = kid_floor(real, repeats=floor_repeats, seed=seed, **options) if len(real) >= 4 else None
    return SetComparison(
        network_name=network_name,
        real_count=len(real),
        fake_count=len(fake),
        kid=kid(real, fake, **options),
        kid_floor=floor,
        frechet_distance=frechet_distance(real, fake),
        precision_recall=precision_recall(real, fake, k),
        density_coverage=coverage(real, fake, k),
    )


def kid(
    real: Features, fake: Features, *, network_name: str = EFFICIENTNET, confidence: float = 0.95
) -> KidResult:
    """Estimate the kernel distance (KID) without bias: Bińkowski et al. 2018 (1801.01401), section 4.

    The estimate uses all pairs, not random subsets: equal in expectation, with less variance. The kernel is
    the paper's (x·y/d + 1)³, made for Inception's features, whose mean square is of order 1. EfficientNet's
    have length 1: x·y/d would be at most 1/1280, the kernel linear but for a rest of 10⁻³, and nothing but
    means compared. So they are scaled by √d to a mean square of 1, which gives (cos(x, y) + 1)³.

    The interval is that of the delete-1 jackknife over the images of both sets (Efron & Stein 1981: its error
    is not too small in expectation) with Student's t and Welch's and Satterthwaite's degrees of freedom. A
    bootstrap draws images repeatedly, whose pairs with themselves bias a U-statistic; the jackknife has no
    such pairs, no random numbers, and costs nothing beside the kernel. Simulated coverage of the 95% interval
    with 16 to 200 images per set: 94% to 99%, the latter for (nearly) equal distributions, where the estimate
    is degenerate and the jackknife overestimates its error by up to a half (see the tests).

    Args:
        real: [N, D], N ≥ 2; an interval takes N ≥ 3.
        fake: [M, D], likewise.
        network_name: of the features; decides on the scaling.
        confidence: of the interval.

    Raises:
        StyleGAN2Error: naming all that is wrong with the features.
    """
    real, fake = _checked(real, fake, network_name=network_name, confidence=confidence)
    value, variances = _unbiased_mmd(_scaled(real, network_name), _scaled(fake, network_name))
    error = half_width = None
    if variances is not None:
        error = math.sqrt(sum(variances))
        half_width = error * _t_quantile(confidence, variances, (len(real) - 1, len(fake) - 1))
    return KidResult(
        value=value,
        lo=None if half_width is None else value - half_width,
        hi=None if half_width is None else value + half_width,
        standard_error=error,
        standard_error_fake=None if variances is None else math.sqrt(variances[1]),
        confidence=confidence,
        method=KID_METHOD,
        kernel="(x·y/d + 1)³" + (" of features scaled by √d" if network_name == EFFICIENTNET else ""),
        network_name=network_name,
        real_count=len(real),
        fake_count=len(fake),
    )


def kid_floor(
    real: Features,
    *,
    network_name: str = EFFICIENTNET,
    repeats: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> KidFloor:
    """Measure the kernel distance of real images from real images, by random halves of one set.

    It shows what chance does at half the set's size, so it is wider than at the full size. With a second real
    set, `kid(real, other_real)` is the floor that also includes what differs between the sets.

    Args:
        real: [N, D], N ≥ 4.
        network_name: of the features.
        repeats: number of random splits.
        confidence: of the upper end.
        seed: of the splits.

    Raises:
        StyleGAN2Error: naming all that is wrong with features or arguments.
    """
    (real,) = _checked(real, network_name=network_name, minimum=4, confidence=confidence, repeats=repeats)
    x = _scaled(real, network_name)
    count, m = len(x), len(x) // 2
    n = count - m
    rng = np.random.Generator(np.random.PCG64(seed))
    in_first = np.zeros((count, repeats))
    for split in range(repeats):
        in_first[rng.permutation(count)[:m], split] = 1
    # All splits share one kernel matrix K (diagonal 0); the pairs of a half with h = 1 sum up to hᵀKh.
    with_first, rows = np.empty((count, repeats)), np.empty(count)
    for start, kernel in _kernel_blocks_without_diagonal(x):
        with_first[start : start + len(kernel)] = kernel @ in_first
        rows[start : start + len(kernel)] = kernel.sum(axis=1)
    first = (in_first * with_first).sum(axis=0)  # [repeats]
    cross = (in_first * (rows[:, None] - with_first)).sum(axis=0)
    second = rows.sum() - first - 2 * cross
    values = _mmd_of_sums(first, second, cross, m, n)
    return KidFloor(
        mean=float(values.mean()),
        standard_deviation=float(values.std(ddof=1)),
        upper=float(np.quantile(values, confidence)),
        confidence=confidence,
        repeats=repeats,
        half_count=m,
        network_name=network_name,
    )


def frechet_distance(real: Features, fake: Features) -> float:
    """Compute the squared Fréchet distance of the normal distributions with the sets' means and covariances.

    Heusel et al. 2017 (1706.08500), equation 6: only on Inception's features is it the FID. It works with
    fewer images than dimensions, but is biased upwards: compare at equal counts only.

    Args:
        real: [N, D], N ≥ 2.
        fake: [M, D], M ≥ 2.

    Raises:
        StyleGAN2Error: naming all that is wrong with the features.
    """
    real, fake = _checked(real, fake)
    # -------------------------------------------------------------------------------------------------------
    # Heusel et al. 2017, equation 6: ‖μ − μ'‖² + Tr(C + C' − 2 (C C')^½). With C = AᵀA and C' = BᵀB the
    # eigenvalues of C C' are the squared singular values of A Bᵀ: their root's trace is the sum of these, and
    # no root of an unsymmetric, perhaps singular matrix is needed.
    # -------------------------------------------------------------------------------------------------------
    a, b = _covariance_factor(real), _covariance_factor(fake)
    singular = scipy.linalg.svdvals(a @ b.T)
    means = np.square(real.mean(axis=0) - fake.mean(axis=0)).sum()
    squared = float(means + np.square(a).sum() + np.square(b).sum() - 2 * singular.sum())
    return max(squared, 0.0)  # rounding may leave −1e-16 for equal sets


def precision_recall(real: Features, fake: Features, k: int = DEFAULT_K) -> PrecisionRecall:
    """Compute improved precision and recall: Kynkäänniemi et al. 2019 (1904.06991), equations 1 and 2.

    Precision: share of generated images within the distance of a real image's k-th nearest real neighbour
    (itself not counted). Recall: the same with the roles exchanged.

    Args:
        real: [N, D], N > k.
        fake: [M, D], M > k.
        k: number of neighbours.

    Raises:
        StyleGAN2Error: naming all that is wrong with features or k.
    """
    real, fake = _checked(real, fake, k=k)
    in_real, _ = _ball_counts(real, fake, k)
    in_fake, _ = _ball_counts(fake, real, k)
    return PrecisionRecall(precision=float((in_real > 0).mean()), recall=float((in_fake > 0).mean()), k=k)


def coverage(real: Features, fake: Features, k: int = DEFAULT_K) -> DensityCoverage:
    """Compute density and coverage: Naeem et al. 2020 (2002.09797), section 3.

    Args:
        real: [N, D], N > k.
        fake: [M, D], M > k.
        k: number of neighbours.

    Raises:
        StyleGAN2Error: naming all that is wrong with features or k.
    """
    real, fake = _checked(real, fake, k=k)
    balls, holds_fake = _ball_counts(real, fake, k)
    return DensityCoverage(
        density=float(balls.mean() / k),
        coverage=float(holds_fake.mean()),
        coverage_of_equals=coverage_of_equals(len(real), len(fake), k),
        k=k,
    )


def coverage_of_equals(real_count: int, fake_count: int, k: int) -> float:
    """Give the expected coverage when both sets come from one distribution.

    A ball holds no generated image exactly when the k nearest neighbours of its centre, among all N − 1 + M
    others, are all real (Naeem et al. 2020, section 3): 1 − Π_{i<k} (N − 1 − i) / (N − 1 + M − i).
    """
    others = real_count - 1
    return 1 - math.prod((others - i) / (others + fake_count - i) for i in range(k))


def _checked(
    *sets: Features,
    network_name: str | None = None,
    minimum: int = 2,
    k: int | None = None,
    confidence: float = 0.95,
    repeats: int = 2,
) -> list[Matrix]:
    """Check features and arguments together; give float64."""
    least = minimum if k is None else max(minimum, k + 1)
    problems = []
    for name, features in zip(("real", "fake"), sets, strict=False):
        problems += [f"{name} features: {text}" for text in _problems(features, network_name, least)]
    widths = [features.shape[1] for features in sets if features.ndim == 2]
    if len(set(widths)) > 1:
        problems.append(f"features: got {widths[0]} and {widths[1]} dimensions, expected equally many")
    if k is not None and k < 1:
        problems.append(f"k: got {k}, expected at least 1")
    if not 0 < confidence < 1:
        problems.append(f"confidence: got {confidence}, expected between 0 and 1")
    if repeats < 2:
        problems.append(f"repeats: got {repeats}, expected at least 2")
    if problems:
        raise StyleGAN2Error("image sets cannot be compared:\n  - " + "\n  - ".join(problems))
    return [features.astype(np.float64) for features in sets]


def _problems(features: Features, network_name: str | None, least: int) -> Iterator[str]:
    """Say what is wrong with the features of one set."""
    if features.ndim != 2 or features.shape[1] == 0:
        yield f"got shape {list(features.shape)}, expected [images, dimensions]"
        return
    if len(features) < least:
        yield f"got {len(features)} images, expected at least {least}; add images (or lower k)"
    bad = int((~np.isfinite(features)).any(axis=1).sum())
    if bad:
        yield f"{bad} of {len(features)} images have values that are not finite"
    elif network_name == EFFICIENTNET and len(features):
        lengths = np.linalg.norm(features.astype(np.float64), axis=1)
        if np.abs(lengths - 1).max() > 1e-3:
            yield (
                f"lengths are {lengths.min():.3g} to {lengths.max():.3g}, expected 1 as of {EFFICIENTNET}; "
                "name the network that they come from"
            )


def _scaled(features: Matrix, network_name: str) -> Matrix:
    return features * math.sqrt(features.shape[1]) if network_name == EFFICIENTNET else features


def _mmd_of_sums(xx: Matrix, yy: Matrix, xy: Matrix, m: int, n: int) -> Matrix:
    """Put the unbiased estimate of MMD² together from sums of the kernel over the pairs of m and n images."""
    # -------------------------------------------------------------------------------------------------------
    # Gretton et al. 2012 (JMLR 13:723), lemma 6:
    # Σ_{i≠j} k(x_i, x_j) / (m(m−1)) + Σ_{i≠j} k(y_i, y_j) / (n(n−1)) − 2 Σ_ij k(x_i, y_j) / (mn)
    # -------------------------------------------------------------------------------------------------------
    return xx / (m * (m - 1)) + yy / (n * (n - 1)) - 2 * xy / (m * n)


def _unbiased_mmd(x: Matrix, y: Matrix) -> tuple[float, tuple[float, float] | None]:
    """Estimate MMD², and its jackknife variances over x and over y (None with fewer than 3 images)."""
    m, n = len(x), len(y)
    of_x = np.concatenate([kernel.sum(axis=1) for _, kernel in _kernel_blocks_without_diagonal(x)])  # [m]
    of_y = np.concatenate([kernel.sum(axis=1) for _, kernel in _kernel_blocks_without_diagonal(y)])  # [n]
    cross_x, cross_y = _cross_sums(x, y)  # [m], [n]
    xx, yy, xy = of_x.sum(), of_y.sum(), cross_x.sum()
    value = float(_mmd_of_sums(xx, yy, xy, m, n))
    if min(m, n) < 3:
        return value, None
    # The same without image i, for every i: its row and column are taken from the sums.
    without_x = _mmd_of_sums(xx - 2 * of_x, yy, xy - cross_x, m - 1, n)
    without_y = _mmd_of_sums(xx, yy - 2 * of_y, xy - cross_y, m, n - 1)
    return value, (_jackknife_variance(without_x), _jackknife_variance(without_y))


def _kernel(x: Matrix, y: Matrix) -> Matrix:
    values: Matrix = (x @ y.T / x.shape[1] + 1) ** 3
    return values


def _kernel_blocks_without_diagonal(x: Matrix) -> Iterator[tuple[int, Matrix]]:
    """Give the rows of the kernel matrix in blocks, with the index of the first; k(x_i, x_i) is set to 0."""
    for start in range(0, len(x), BLOCK):
        kernel = _kernel(x[start : start + BLOCK], x)
        rows = np.arange(len(kernel))
        kernel[rows, start + rows] = 0
        yield start, kernel


def _cross_sums(x: Matrix, y: Matrix) -> tuple[Matrix, Matrix]:
    """Sum the kernel of all pairs over y, [m], and over x, [n]."""
    over_y, over_x = np.empty(len(x)), np.zeros(len(y))
    for start in range(0, len(x), BLOCK):
        kernel = _kernel(x[start : start + BLOCK], y)
        over_y[start : start + BLOCK] = kernel.sum(axis=1)
        over_x += kernel.sum(axis=0)
    return over_y, over_x


def _jackknife_variance(without: Matrix) -> float:
    """Estimate a statistic's variance from its values without each of the images, [m]."""
    count = len(without)
    return float((count - 1) / count * np.square(without - without.mean()).sum())


def _t_quantile(confidence: float, variances: tuple[float, float], freedoms: tuple[int, int]) -> float:
    """Give Student's two-sided quantile with Welch's and Satterthwaite's degrees of freedom."""
    spread = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms, strict=True))
    freedom = sum(variances) ** 2 / spread if spread > 0 else math.inf
    return float(scipy.stats.t.ppf((1 + confidence) / 2, freedom))


def _covariance_factor(features: Matrix) -> Matrix:
    """Give A with AᵀA = covariance (divided by N − 1), with no more than D rows."""
    centred = (features - features.mean(axis=0)) / math.sqrt(len(features) - 1)
    if len(centred) <= centred.shape[1]:
        return centred
    values, vectors = scipy.linalg.eigh(centred.T @ centred)
    factor: Matrix = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    return factor


def _ball_counts(centres: Matrix, points: Matrix, k: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Count, for every point, the balls that hold it, and tell which balls hold any point.

    A ball reaches from its centre to the k-th nearest other centre, boundary included. Distances are summed
    up coordinate by coordinate, not taken from scalar products, so that equal images are at distance 0.
    """
    counts, holds_any = np.zeros(len(points), np.int64), np.empty(len(centres), np.bool_)
    for start in range(0, len(centres), BLOCK):
        block = centres[start : start + BLOCK]
        among_centres = scipy.spatial.distance.cdist(block, centres)
        rows = np.arange(len(block))
        among_centres[rows, start + rows] = np.inf  # not its own neighbour
        radii = np.partition(among_centres, k - 1, axis=1)[:, k - 1]
        inside = scipy.spatial.distance.cdist(block, points) <= radii[:, None]
        counts += inside.sum(axis=0)
        holds_any[start : start + BLOCK] = inside.any(axis=1)
    return counts, holds_any
