"""What a study of caches gave, or would take: values, JSON and lines. Measuring is `study`'s, the page `page`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.edge.fit.contexts import contexts_of
from edgepack.edge.kv.sizes import cache_bytes, rotated, row_bytes
from edgepack.pipeline.kv.terms import SHARES
from edgepack.quantities import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from edgepack.edge.fit.shape import ModelShape
    from edgepack.edge.kv.table import CacheTable
    from edgepack.pipeline.kv.spectra import Spectra
    from edgepack.pipeline.kv.terms import KindName
    from edgepack.quant.calibration.attention_spectra import HeadsSpectra, LayerSpectra, View

_HALF = 2  # bytes of a value of float16, in which a cache of fewer dimensions is reckoned


@dataclass(frozen=True)
class ShareOfEnergy:
    """A cache that keeps a share of the centred energy of keys (before rotation) and values in every layer.

    Attributes:
        share: 0 to 1.
        k, v: dimensions that it holds, summed over layers.
        bytes_per_token: of it in float16.
        of_whole: over those of the whole cache in float16.
    """

    share: float
    k: int
    v: int
    bytes_per_token: int
    of_whole: float


@dataclass(frozen=True)
class KvForecast:
    """What a study would do.

    Attributes:
        ctx, chunks: tokens of a chunk, and how many.
        caches: names that would be measured.
        left_out: name → why llama.cpp opens no such cache.
        evaluations: of a chunk each, spectra and projections included.
        seconds: about how long on this machine's free cores, by the count of weights; None where that is not known.
        logits_bytes: memory of the predictions that are held at once.
    """

    ctx: int
    chunks: int
    caches: tuple[str, ...]
    left_out: Mapping[str, str]
    evaluations: int
    seconds: float | None
    logits_bytes: int

    def json(self) -> dict[str, Any]:
        """The object that `edgepack kv --dry-run --json` prints."""
        return {**vars(self), "caches": list(self.caches), "left_out": dict(self.left_out)}

    def lines(self) -> Iterator[str]:
        """For people."""
        took = "" if self.seconds is None else f", about {self.seconds / 60:,.0f} minutes here"
        yield f"{self.chunks} chunks of {self.ctx} tokens, {self.evaluations} evaluations{took}"
        yield f"caches: {', '.join(self.caches)}"
        for name, reason in self.left_out.items():
            yield f"left out: {name}: {reason}"
        yield f"predictions in memory: {format_size(self.logits_bytes)}"


@dataclass(frozen=True)
class KvResult:
    """What `edgepack kv` measured and wrote.

    Attributes:
        model: that was named.
        shape: of the file that ran.
        table: what each cache of llama.cpp costs.
        spectra: of keys, values and queries; None where they were not taken.
        spectra_problem: why not; empty where they were, or where nobody asked.
        digest: of the contents that the table holds for.
        seconds: wall time.
        output: the file with the table; None where none was asked for.
        bytes: its length; 0 without.
    """

    model: Path
    shape: ModelShape
    table: CacheTable
    spectra: Spectra | None
    spectra_problem: str
    digest: str
    seconds: float
    output: Path | None = None
    bytes: int = 0

    @property
    def contexts(self) -> list[int]:
        """Powers of two up to the context of training, and the context that was read."""
        return contexts_of(self.shape, self.table.ctx)

    def shares(self) -> list[ShareOfEnergy]:
        """What caches that keep a share of the energy would hold; empty without spectra."""
        if self.spectra is None:
            return []
        found = []
        whole = sum(layer.kinds["k"].width + layer.kinds["v"].width for layer in self.spectra.layers)
        for share in SHARES:
            k, v = (
                sum(_held(layer, part).joint["centred"].dimensions(share) for layer in self.spectra.layers)
                for part in ("k", "v")
            )
            found.append(ShareOfEnergy(share, k, v, _HALF * (k + v), (k + v) / whole))
        return found

    def at_contexts(self) -> list[dict[str, Any]]:
        """Bytes of every cache at every context; those of fewer dimensions are named `90 %` and so on."""
        rows = []
        for ctx in self.contexts:
            row: dict[str, int] = {cost.name: cache_bytes(self.shape, cost.name, ctx) for cost in self.table.costs}
            row |= {f"{100 * one.share:g} %": one.bytes_per_token * ctx for one in self.shares()}
            if self.spectra is not None:
                row |= {f"{one.dimensions} dimensions": one.bytes_per_token * ctx for one in self.spectra.costs}
            rows.append({"ctx": ctx, "bytes": row})
        return rows

    def json(self) -> dict[str, Any]:
        """The object that `edgepack kv --json` prints."""
        told = self.table.json(self.shape)
        for row in told["caches"]:
            row["rotated_k"], row["rotated_v"] = rotated(self.shape, row["kv_type"])
        return {
            "file": str(self.model),
            "output": None if self.output is None else str(self.output),
            "bytes": self.bytes,
            "digest": self.digest,
            "seconds": self.seconds,
            **told,
            "contexts": self.at_contexts(),
            "spectra": None if self.spectra is None else _spectra_json(self),
            "spectra_problem": self.spectra_problem or None,
        }

    def html(self) -> str:
        """A self-contained page: costs, contexts, spectra of every layer."""
        from edgepack.pipeline.kv.page import render

        return render(self)

    def lines(self) -> Iterator[str]:
        """For people."""
        read = f"{self.table.chunks} chunks of {self.table.ctx}"
        yield f"{self.table.tokens:,} tokens of {self.table.text} scored in {read}"
        against = self.table.original
        yield f"  {'cache':<14}{'bytes/token':>12}{'KL to f16':>11}{'at most':>10}{'same token':>12}" + (
            f"{'KL to original':>16}" if against else ""
        )
        for cost in self.table.costs:
            original = "" if cost.original_kl is None else f"{cost.original_kl:>16.5f}"
            yield (
                f"  {cost.name:<14}{row_bytes(self.shape, cost.name):>12,}{cost.kl:>11.5f}{cost.kl_high:>10.5f}"
                f"{100 * cost.agreement:>10.2f} %{original}"
            )
        for name, reason in self.table.left_out.items():
            yield f"  {name:<14}left out: {reason}"
        chosen = self.table.smallest(self.shape)
        within = f"within {self.table.max_kl:g} nats: {'none smaller than f16' if chosen is None else chosen.name}"
        yield f"  where f16 does not fit, the smallest cache {within}"
        yield from self._contexts()
        yield from self._spectra()

    def _contexts(self) -> Iterator[str]:
        rows = self.at_contexts()
        names = [name for name in rows[0]["bytes"] if name in ("f16", "q8_0", "q4_0") or name[0].isdigit()]
        yield "\n  " + f"{'context':>9}" + "".join(f"{name:>15}" for name in names)
        for row in rows:
            yield "  " + f"{row['ctx']:>9,}" + "".join(f"{format_size(row['bytes'][name]):>15}" for name in names)

    def _spectra(self) -> Iterator[str]:
        if self.spectra is None:
            if self.spectra_problem:
                yield f"\nno spectra: {self.spectra_problem}"
            return
        read = f"{self.spectra.tokens:,} tokens"
        yield f"\ndimensions that hold 90/95/99 % of the centred energy, all heads together ({read})"
        heads = ("K before", "K", "V", "Q")
        yield f"  {'layer':>5}" + "".join(f"{name:>20}" for name in heads) + f"{'K raw, no 1st':>20}"
        for layer in self.spectra.layers:
            cells = [_cell(layer, kind, "centred") for kind in ("k_before", "k", "v", "q")]
            yield f"  {layer.layer:>5}" + "".join(
                f"{cell:>20}" for cell in (*cells, _cell(layer, "k", "raw_first_dropped"))
            )
        for cost in self.spectra.costs:
            yield (
                f"  {cost.dimensions} dimensions: {100 * cost.kept_k:.1f} % of K, {100 * cost.kept_v:.1f} % of V, "
                f"{cost.bytes_per_token:,} bytes a token, KL {cost.kl:.4f} (at most {cost.kl_high:.4f}), "
                f"{100 * cost.agreement:.1f} % same token"
            )


def _held(layer: LayerSpectra, part: str) -> HeadsSpectra:
    """What a cache of fewer dimensions would hold: values, and keys before rotation where they can be seen."""
    if part == "v":
        return layer.kinds["v"]
    return layer.kinds["k_before"] if "k_before" in layer.kinds else layer.kinds["k"]


def _cell(layer: LayerSpectra, kind: KindName, view: View) -> str:
    if kind not in layer.kinds:
        return "–"
    spectrum = layer.kinds[kind].joint[view]
    return "/".join(str(spectrum.dimensions(share)) for share in SHARES) + f" of {spectrum.width}"


def _spectra_json(result: KvResult) -> dict[str, Any]:
    assert result.spectra is not None
    return {
        "tokens": result.spectra.tokens,
        "shares": [vars(one) for one in result.shares()],
        "dimensions": [vars(one) for one in result.spectra.costs],
        "layers": [_layer_json(layer) for layer in result.spectra.layers],
    }


def _layer_json(layer: LayerSpectra) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "query_heads": layer.query_heads,
        "kv_heads": layer.kv_heads,
        "rotated": layer.rotated,
        "kinds": {kind: _kind_json(spectra) for kind, spectra in layer.kinds.items()},
    }


def _kind_json(spectra: HeadsSpectra) -> dict[str, Any]:
    return {
        "width": spectra.width,
        "head_width": spectra.width // len(spectra.heads),
        "views": {
            view: {
                "effective_rank": joint.effective_rank,
                "head_effective_rank": spectra.mean_head_rank(view),
                **{f"k{100 * share:g}": joint.dimensions(share) for share in SHARES},
                **{f"head_k{100 * share:g}": spectra.mean_head_dimensions(view, share) for share in SHARES},
            }
            for view, joint in spectra.joint.items()
        },
    }
