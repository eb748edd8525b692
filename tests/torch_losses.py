"""The losses in PyTorch, written from their formulas; without masks and devices."""

import itertools
import math

import jax
import numpy as np
import pytest

from pcjax.losses.noise_contrastive import _draw

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional


# Scores


def kd(s, t, temperature=4.0):
    log_q, log_p = F.log_softmax(s / temperature, 1), F.log_softmax(t / temperature, 1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def cross_entropy(s, t, labels, label_smoothing=0.0):
    return F.cross_entropy(s, labels, ignore_index=-1, label_smoothing=label_smoothing)


def dkd(s, t, labels, alpha=1.0, beta=8.0, temperature=4.0):
    target = F.one_hot(labels[labels >= 0], s.shape[1]).bool()

    def split(z):
        log_p = F.log_softmax(z[labels >= 0] / temperature, 1)
        others = log_p[~target].view(len(target), -1)
        return torch.stack([log_p[target], others.logsumexp(1)], 1), F.log_softmax(others, 1)

    both, others = (
        F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        for log_q, log_p in zip(split(s), split(t), strict=True)
    )
    return temperature**2 * (alpha * both + beta * others)


def dist(s, t, beta=1.0, gamma=1.0, temperature=1.0):
    def correlations(p, q):
        p, q = p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True)
        return (p * q).sum(1) / (p.norm(dim=1) * q.norm(dim=1) + 1e-8)

    p, q = (s / temperature).softmax(1), (t / temperature).softmax(1)
    missing = beta * (1 - correlations(p, q).mean()) + gamma * (1 - correlations(p.T, q.T).mean())
    return temperature**2 * missing


def shared_classifier(s, t, kernel, bias=None, temperature=4.0):
    return kd(F.linear(s, kernel.T, bias), F.linear(t, kernel.T, bias), temperature)


# Features and maps


def mean_squared_error(s, t):
    return F.mse_loss(s, t)


def variational_information(s, t, variance):
    return F.gaussian_nll_loss(s, t, variance.expand_as(t))


def embed_distill(s, t, distance="euclidean"):
    return (
        F.pairwise_distance(s, t, eps=0).mean()
        if distance == "euclidean"
        else 1 - F.cosine_similarity(s, t).mean()
    )


def orthogonal_projection(s, t):
    return F.smooth_l1_loss(s, F.layer_norm(t, t.shape[1:]))


def procrustes(s, t):
    s, t = (x - x.mean(0) for x in (s, t))
    s, t = (x / torch.linalg.matrix_norm(x) for x in (s, t))
    return s.square().sum() + t.square().sum() - 2 * torch.linalg.matrix_norm(s.T @ t, "nuc")


def locality_preserving(s, t, neighbours=5, width=None):
    near, nearest = (
        distances(t, t).square().fill_diagonal_(math.inf).topk(neighbours, largest=False)
    )
    weights = torch.exp(-near / (near.mean() if width is None else width))
    return (weights * (s[:, None] - s[nearest]).square().sum(2)).sum(1).mean() / 2


def pooled(s, t):
    """Both maps with their channels first and of the smaller height and width."""
    size = [min(pair) for pair in zip(s.shape[1:3], t.shape[1:3], strict=True)]
    return (F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), size) for x in (s, t))


def attention_transfer(s, t, form="squared"):
    s, t = (F.normalize(x.square().mean(1).flatten(1)) for x in pooled(s, t))
    return F.mse_loss(s, t) if form == "squared" else (s - t).norm(dim=1).mean()


def neuron_selectivity(s, t):
    s, t = (F.normalize(x.flatten(2), dim=2) for x in pooled(s, t))
    of = lambda a, b: (a @ b.mT).square().mean()
    return of(t, t) + of(s, s) - 2 * of(s, t)


def proto2proto(
    s,
    t,
    student_prototypes,
    teacher_prototypes,
    threshold=100.0,
    prototype_weight=10.0,
    patch_weight=10.0,
    active="teacher",
):
    s, t = s.flatten(1, 2), t.flatten(1, 2)
    patches, prototypes = (
        (t, teacher_prototypes) if active == "teacher" else (s, student_prototypes)
    )
    result = set()
    for i, prototype in itertools.product(range(len(s)), prototypes):
        squared = (patches[i] - prototype).square().sum(1)
        if squared.min() < threshold:
            result.add((i, squared.argmin().item()))
    assert 0 < len(result) < s.shape[0] * s.shape[1]
    apart = sum((s[place] - t[place]).square().sum() for place in result) / (2 * len(result) + 1)
    moved = (student_prototypes - teacher_prototypes).norm(dim=1).mean()
    return prototype_weight * moved + patch_weight * apart


# Pairs and tuples of examples


def distances(x, y, p=2.0):
    return torch.cdist(x, y, p=p, compute_mode="donot_use_mm_for_euclid_dist")


def cosines(x, y):
    return F.cosine_similarity(x[:, None], y, dim=2)


DISSIMILARITIES = {
    "euclidean": distances,
    "squared_euclidean": lambda x, y: (x[:, None] - y).square().sum(2),
    "cosine": lambda x, y: 1 - cosines(x, y),
    "angular": lambda x, y: torch.acos(cosines(x, y)) / math.pi,
    "manhattan": lambda x, y: distances(x, y, p=1.0),
    "correlation": lambda x, y: (
        1 - cosines(x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True))
    ),
}


def rkd_distance(s, t):
    s, t = (distances(x, x) for x in (s, t))
    return F.huber_loss(s / s[s > 0].mean(), t / t[t > 0].mean())


def rkd_angle(s, t):
    s, t = (F.normalize(x - x[:, None], dim=2) for x in (s, t))
    return F.huber_loss(s @ s.mT, t @ t.mT)


def similarity_preserving(s, t):
    return F.mse_loss(F.normalize(s @ s.T), F.normalize(t @ t.T))


def pkt(s, t):
    s, t = ((cosines(x, x) + 1) / 2 for x in (s, t))
    p, q = (x / x.sum(1, keepdim=True) for x in (t, s))
    return (p * torch.log((p + 1e-7) / (q + 1e-7))).mean()


def correlation_congruence(s, t, gamma=0.4, order=2):
    def kernel(x):
        powers = (
            (2 * gamma) ** p / math.factorial(p) * cosines(x, x) ** p for p in range(order + 1)
        )
        return math.exp(-2 * gamma) * sum(powers)

    return F.mse_loss(kernel(s), kernel(t))


def cka(s, t):
    s, t = (x - x.mean(0) for x in (s, t))
    norm = torch.linalg.matrix_norm
    return 1 - norm(s.T @ t) ** 2 / (norm(s.T @ s) * norm(t.T @ t))


def darkrank_scores(s, t, alpha, beta, list_length):
    """Compute both models' scores of the listed, in the teacher's order."""
    s, t = (distances(F.normalize(x), F.normalize(x)) for x in (s, t))
    nearest = (t + torch.diag(t.new_full((len(t),), math.inf))).topk(list_length, largest=False)[1]
    return (-alpha * x.gather(1, nearest) ** beta for x in (s, t))


def log_likelihood(scores):
    return (scores - scores.flip(1).logcumsumexp(1).flip(1)).sum(1)


def darkrank_hard(s, t, alpha=3.0, beta=3.0, list_length=4):
    s, _ = darkrank_scores(s, t, alpha, beta, list_length)
    return -log_likelihood(s).mean()


def darkrank_soft(s, t, alpha=3.0, beta=3.0, list_length=4):
    s, t = darkrank_scores(s, t, alpha, beta, list_length)
    orders = list(itertools.permutations(range(list_length)))
    s, t = (torch.stack([log_likelihood(x[:, order]) for order in orders], 1) for x in (s, t))
    return F.kl_div(s, t, reduction="batchmean", log_target=True)


def pairwise_ranking(s, t, penalty="hinge", margin=0.0, sharpness=1.0, dissimilarity="euclidean"):
    one, other = torch.triu_indices(len(s), len(s), 1)
    s, t = (
        DISSIMILARITIES[dissimilarity](x, x)[one, other] for x in (F.normalize(s), F.normalize(t))
    )
    farther, nearer = torch.nonzero(t[:, None] > t, as_tuple=True)
    named = {"difference": t[farther] - t[nearer], "deviation": t.std(correction=0)}
    v = sharpness * (named.get(margin, margin) - (s[farther] - s[nearer]))
    costs = {
        "hinge": F.relu(v),
        "exponential": F.relu(v.exp() - 1),
        "logistic": F.softplus(v, threshold=1e9),
    }
    return costs[penalty].mean()


# Ranks of the others, by counting


def hard_ranks(d):
    return 0.5 + ((d[:, None] > d).to(d) + 0.5 * (d[:, None] == d)).sum(1)


def soft_ranks(d, width, ranking):
    if ranking == "permutahedron":
        down, order = (d / width).sort(descending=True)
        y, n = down - torch.arange(len(d), 0, -1), len(d)
        mean = lambda i, j: y[i : j + 1].mean()
        # The minimum, over the starts of k's block, of the largest mean of blocks that end at k or
        # later.
        fit = [
            torch.stack(
                [torch.stack([mean(i, j) for j in range(k, n)]).max() for i in range(k + 1)]
            ).min()
            for k in range(n)
        ]
        return (down - torch.stack(fit))[order.argsort()]
    u = (d[:, None] - d) / width
    steps = u.sigmoid() if ranking == "logistic" else 0.5 - 0.5 * u.sign() * torch.expm1(-u.abs())
    return 0.5 + steps.sum(1)


def rows_of_others(x, points, measure, skip):
    """Compute each example's dissimilarities to the points, except to itself."""
    kept = [torch.arange(len(points)) != (i if skip else -1) for i in range(len(x))]
    return torch.stack(
        [DISSIMILARITIES[measure](x[i : i + 1], points[kept[i]])[0] for i in range(len(x))]
    )


def perception_coherence(
    s,
    t,
    temperature,
    dissimilarity="cosine",
    teacher_dissimilarity=None,
    teacher_temperature=None,
    ranking="laplace",
    scale="row",
    frame="own",
    power=1,
    weighting="uniform",
    references=None,
):
    own = frame == "own"
    more = (s[:0], t[:0]) if references is None else references
    every_s, every_t = (torch.cat(pair) for pair in zip((s, t), more, strict=True))
    d_s = rows_of_others(s, every_s if own else every_t, dissimilarity, own)
    d_t = rows_of_others(t, every_t, teacher_dissimilarity or dissimilarity, own)
    width = (
        (lambda d: d.std(1, correction=0))
        if scale == "row"
        else (lambda d: d.mean().expand(len(d)))
    )
    values = []
    for row_s, row_t, width_s, width_t in zip(d_s, d_t, width(d_s), width(d_t), strict=True):
        ranks = soft_ranks(row_s, temperature * width_s, ranking)
        targets = hard_ranks(row_t)
        if teacher_temperature is not None:
            targets = soft_ranks(row_t, teacher_temperature * width_t, ranking)
        weights = torch.ones_like(targets) if weighting == "uniform" else 1 / (8 + targets)
        values.append(
            (weights / weights.mean() * ((ranks - targets) / len(ranks)).abs() ** power).mean()
        )
    return torch.stack(values).mean()


def spearman(
    s, t, temperature, dissimilarity="cosine", teacher_dissimilarity=None, ranking="laplace"
):
    d_s = rows_of_others(s, s, dissimilarity, True)
    d_t = rows_of_others(t, t, teacher_dissimilarity or dissimilarity, True)
    ranks = [
        torch.stack(
            [soft_ranks(row_s, temperature * row_s.std(correction=0), ranking), hard_ranks(row_t)]
        )
        for row_s, row_t in zip(d_s, d_t, strict=True)
    ]
    return 1 - torch.stack([torch.corrcoef(pair)[0, 1] for pair in ranks]).mean()


# Positives and negatives


def stored(queue, which=None):
    points = torch.tensor(
        np.asarray(queue.points if which is None else queue.points[which], np.float64)
    )
    return F.normalize(points[: int(queue.filled)])


def info_nce(s, t, temperature=0.07, queue=None, symmetric=True, teacher_gradient=False):
    u, v = F.normalize(s), F.normalize(t)
    keys = list(v) if queue is None else [*v, *stored(queue)]
    total = 0.0
    for i in range(len(u)):
        match = torch.exp(u[i] @ v[i] / temperature)
        value = -torch.log(match / sum(torch.exp(u[i] @ key / temperature) for key in keys))
        if symmetric:
            value = (
                value - torch.log(match / sum(torch.exp(v[i] @ one / temperature) for one in u))
            ) / 2
        total = total + value
    return total / len(u)


def relational_representation(s, t, queue, temperature=0.1, teacher_temperature=0.02):
    u, v, keys = F.normalize(s), F.normalize(t), stored(queue)
    values = []
    for i in range(len(u)):
        p = torch.stack([v[i] @ key / teacher_temperature for key in keys]).softmax(0)
        q = torch.stack([u[i] @ key / temperature for key in keys]).softmax(0)
        values.append(-sum(p[k] * q[k].log() for k in range(len(keys))))
    return torch.stack(values).mean()


def similarity_kl(s, t, queue, temperature=0.04):
    u, v, pair = F.normalize(s), F.normalize(t), isinstance(queue.points, tuple)
    keys_s, keys_t = (
        (stored(queue, 0), stored(queue, 1)) if pair else (stored(queue), stored(queue))
    )
    values = []
    for i in range(len(u)):
        log_p = torch.stack([v[i] @ key / temperature for key in keys_t]).log_softmax(0)
        log_q = torch.stack([u[i] @ key / temperature for key in keys_s]).log_softmax(0)
        values.append(sum(log_p[k].exp() * (log_p[k] - log_q[k]) for k in range(len(log_p))))
    return torch.stack(values).mean()


def bingo(
    s,
    t,
    student_neighbours,
    teacher_neighbours,
    student_mixtures,
    share,
    queue,
    temperature=0.2,
    own=0.5,
):
    def draw(query, key):
        query, key = F.normalize(query, dim=0), F.normalize(key, dim=0)
        match = torch.exp(query @ key / temperature)
        return -torch.log(
            match / (match + sum(torch.exp(query @ n / temperature) for n in stored(queue)))
        )

    total = 0.0
    for i, part in enumerate(torch.as_tensor(share, dtype=s.dtype).expand(len(s))):
        (a, key_a), (p, key_p) = (s[i], t[i]), (student_neighbours[i], teacher_neighbours[i])
        example = own * draw(a, key_a) + (1 - own) * draw(a, key_p)
        neighbour = own * draw(p, key_p) + (1 - own) * draw(p, key_a)
        mixture = part * draw(student_mixtures[i], key_a) + (1 - part) * draw(
            student_mixtures[i], key_p
        )
        total = total + (example + neighbour + mixture) / 3
    return total / len(s)


def crd(s, t, memory, indices, key, negatives, temperature=0.07, teacher_gradient=False):
    examples = len(memory.student)
    drawn = [
        np.asarray(_draw(memory, i, jax.random.fold_in(key, i), negatives)) for i in indices.numpy()
    ]
    total = 0.0
    sides = (t, memory.student), (s, memory.teacher)
    for (embeddings, points), log_normaliser in zip(
        sides, np.asarray(memory.log_normalisers), strict=True
    ):
        points = torch.tensor(np.asarray(points, np.float64))
        picked = [points[[int(i), *others]] for i, others in zip(indices, drawn, strict=True)]
        odds = [
            torch.exp(m @ a / temperature)
            for m, a in zip(picked, F.normalize(embeddings), strict=True)
        ]
        z = (
            math.exp(log_normaliser)
            if memory.started
            else examples * torch.stack(odds).detach().mean()
        )
        noise = negatives / examples
        for own, *others in (of / z for of in odds):
            total = (
                total
                - torch.log(own / (own + noise))
                - sum(torch.log(noise / (p + noise)) for p in others)
            )
    return total / len(s)
