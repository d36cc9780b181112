"""The certificate as pictures that stand by themselves: SVG files beside the model card.

What is drawn was measured by the certificate's maker on its stored positions; `edge.fidelity.report.charts` draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgepack.edge.fidelity.report.charts import HEIGHT, LEFT, RIGHT, WIDTH, bars, line

if TYPE_CHECKING:
    from edgepack.edge.fidelity.stored_reference import StoredReference

DIVERGENCE, AGREEMENT = "fidelity-divergence.svg", "fidelity-agreement.svg"
_STYLE = (
    "<style>text{font:11px sans-serif;fill:#57606a}.bar{fill:#1f6feb}.grid{stroke:#d0d7de}"
    ".line{fill:none;stroke:#1f6feb;stroke-width:2}</style>"
)
_BINS_A_DECADE = 4
_PARTS = 16


def plots(certificate: StoredReference) -> dict[str, str]:
    """File name → SVG: tokens by divergence, and agreement along the position in a chunk."""
    return {
        DIVERGENCE: _standing(_divergence(certificate), "tokens by KL divergence from the original, in nats"),
        AGREEMENT: _standing(_agreement(certificate), "equal first choices by position in a chunk, in tokens"),
    }


def _divergence(certificate: StoredReference) -> str:
    edges = 10.0 ** np.arange(-7, 2 + 1e-9, 1 / _BINS_A_DECADE)
    counts = np.bincount(
        np.searchsorted(edges, certificate.candidate_divergence, side="right"), minlength=len(edges) + 1
    )
    filled = np.flatnonzero(counts)
    first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 1)
    labels = ["< 1e-7", *[f"{edge:.1g}" for edge in edges]]
    return bars(counts[first:last].tolist(), labels[first:last], "tokens by KL divergence in nats", log=True)


def _agreement(certificate: StoredReference) -> str:
    agrees = (certificate.candidate_top == certificate.reference.ids[:, 0]).reshape(-1, certificate.scored_per_chunk)
    shares = agrees.mean(axis=0)
    parts = np.array_split(np.arange(len(shares)), min(_PARTS, len(shares)))
    points = [(float(certificate.first + part.mean() + 1), float(shares[part].mean())) for part in parts if len(part)]
    return line(points, "share of equal first choices by position in a chunk")


def _standing(svg: str, caption: str) -> str:
    """A chart of a page as a file of its own: with its namespace, colours, a white ground and a caption."""
    head, tail = svg.split(">", 1)
    ground = f'{_STYLE}<rect width="100%" height="100%" fill="#fff"/>'
    told = f'<text x="{(LEFT + WIDTH - RIGHT) // 2}" y="{HEIGHT - 2}" text-anchor="middle">{caption}</text>'
    return f'{head} xmlns="http://www.w3.org/2000/svg">{ground}{told}{tail}\n'
