"""What is compared, a table each, in the order of the file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A table.

    Attributes:
        title: its heading.
        note: what either side does.
        tolerance: how much higher our figure may be than a peer's, as a share of it.
        figure: what is compared besides the times.
        totals: whether the times are added up, each layer as often as it occurs.
    """

    title: str
    note: str
    tolerance: float
    figure: str = "relative error"
    totals: bool = False


_TUCKER = (
    "Ours: the spectra of both channel unfoldings, EVBMF ranks, Tucker-2. Peers: "
    '`tensorly.decomposition.partial_tucker(w, ranks, modes=[0, 1], init="svd")` at the same '
    "ranks, which are given to it; and the usual script, which finds the ranks by EVBMF on "
    "`numpy.linalg.svd` of both unfoldings and then calls the same function."
)
_PARAFAC = '`tensorly.decomposition.parafac(w, rank, n_iter_max=100, tol=0, init="random")`'

TUCKER_VGG16 = Section("Tucker-2, VGG-16", _TUCKER, 0.002, totals=True)
TUCKER_RESNET50 = Section("Tucker-2, 3x3 convolutions of ResNet-50", _TUCKER, 0.002, totals=True)
CP4 = Section(
    "CP, four-way",
    f"Ours: `rankfold.cp`, to the end of its fit. Peer: {_PARAFAC} on (out, in, 3, 3).",
    0.01,
)
CP3 = Section(
    "CP, three-way",
    f"Ours: `rankfold.cp3`, to the end of its fit. Peer: {_PARAFAC} on (out, in, 9).",
    0.01,
)
EVBMF = Section(
    "EVBMF",
    "Ours: `rankfold.evbmf`, from the eigenvalues of the Gram matrix. Peer: "
    "`numpy.linalg.svd(w, full_matrices=False)`, then the same EVBMF. The ranks must be equal.",
    0.001,
    figure="noise variance",
)
SVD = Section(
    "Truncated SVD",
    "Ours: `rankfold.truncated_svd(rankfold.Linear(w), rank)`, and "
    "the same with `exact=True`. Peers: `numpy.linalg.svd(w, full_matrices=False)`, cut off; "
    "`torch.svd_lowrank(w, q=rank, niter=2)`; "
    "`sklearn.utils.extmath.randomized_svd(w, n_components=rank)`.",
    0.01,
)

SECTIONS = (TUCKER_VGG16, TUCKER_RESNET50, CP4, CP3, EVBMF, SVD)
