"""The table of one run's test, from its record alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genlab.report import fairness
from genlab.report.table import MetricsTable, metrics_table
from genlab.runs.metrics_file import short_name

COSTS = {
    "ms_per_sample": "ms, one sample",
    "samples_per_second_64": "samples/s, 64 at once",
    "nfe": "network evaluations",
    "peak_memory_mib": "MiB, 64 at once",
}
COPIES = {
    "share": "copy share",
    "median_ratio": "distance to training images",
    "longest": "longest copied passage",
}
GAME = ("loss", "generator", "discriminator", "adversarial", "accuracy_real", "accuracy_fake")
"""What two players reach against each other: it says nothing of either alone. A run's record keeps it."""

AS_ABOVE = "as above"

LATENT = {
    "dim": "latent dimensions",
    "linear_probe": "linear probe",
    "path_length": "path length",
    "active_units": "active units",
    "mig": "MIG",
    "dci": "DCI",
}


def table_of(entry: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]]) -> MetricsTable:
    """Returns every number of a test with how it was obtained; a column for each variant.

    Args:
        entry: The test entry of the run's own way to sample.
        variants: Those of its variants, by name.
    """
    rows, columns = rows_of(entry, variants)
    return metrics_table(rows, columns)


def rows_of(
    entry: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Returns the same as numbers: the rows, and the columns that any of them fills; see `table_of`."""
    columns = {"value": entry, **variants}
    cells = {column: values_of(one) for column, one in columns.items()}
    names = dict.fromkeys(name for found in cells.values() for name in found)
    spreads, floor = spreads_of(entry.get("values", {})), floor_of(entry)
    rows = [
        {
            "metric": name,
            **{column: found.get(name) for column, found in cells.items()},
            "spread": spreads.get(name),
            "floor": floor.get(name),
            "protocol": protocol_of(name, entry),
        }
        for name in names
    ]
    for row, above in reversed([*zip(rows[1:], rows, strict=False)]):
        if row["protocol"] == above["protocol"]:
            row["protocol"] = AS_ABOVE
    shown = [name for name in ("spread", "floor") if any(row[name] is not None for row in rows)]
    return rows, ("metric", "value", *shown, *variants, "protocol")


def values_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an entry's numbers by the names that the table has for them."""
    values = {name: value for name, value in entry.get("values", {}).items() if "_std" not in name}
    means = entry.get("split_means", ())
    if "accuracy_real" in means:  # ELECTRA's two networks play none
        values = {name: value for name, value in values.items() if name not in GAME}
    found = {name: value for name, value in values.items() if name not in means}
    latent = {**entry.get("latent", {}), **entry.get("latent", {}).get("disentanglement", {})}
    for part, names in ((entry.get("copies", {}), COPIES), (latent, LATENT), (entry.get("speed", {}), COSTS)):
        found |= {name: part[key] for key, name in names.items() if part.get(key) is not None}
    return found | {name: values[name] for name in means if name in values}


def floor_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what real data have in the place of samples: training images, and of copies unseen text."""
    copies = entry.get("copies", {})
    return {**entry.get("floor", {}), COPIES["share"]: copies.get("test_share")}


def spreads_of(values: Mapping[str, float]) -> dict[str, float]:
    """Returns the standard deviations among values, by the name of what they belong to."""
    return {name.replace("_std", "", 1): value for name, value in values.items() if "_std" in name}


def protocol_of(name: str, entry: Mapping[str, Any]) -> str:
    """Returns how a number was obtained, in one line."""
    protocol = entry.get("protocol", {})
    if name in entry.get("split_means", ()):
        return "mean over the split"
    if fairness.scope_of(short_name(name)) == fairness.LIKELIHOOD and "likelihood" in protocol:
        return likelihood_protocol(protocol["likelihood"])
    if name == "reconstruction_mse":
        part = protocol.get("reconstruction", {})
        return f"of {part.get('num', 0):,} {part.get('split', '')} images, numbers in [-1, 1]"
    if name in COSTS.values():
        return fairness.timed_on(entry.get("speed", {}))
    if name in COPIES.values():
        return copies_protocol(name, entry.get("copies", {}))
    if name in LATENT.values():
        return latent_protocol(name, entry.get("latent", {}))
    return samples_protocol(protocol) if "num_fake" in protocol else "mean over the split"


def samples_protocol(protocol: Mapping[str, Any]) -> str:
    """Returns how a score of samples was obtained."""
    line = (
        f"{protocol['num_fake']:,} samples ({protocol['weights']}, seed {protocol['seed']}) "
        f"against {protocol['num_real']:,} {protocol['split']} items of {protocol['data']} "
        f"{protocol['data_fingerprint'][:8]}"
    )
    if "extractor_digest" not in protocol:  # the items themselves are compared
        return line
    return f"{line}, {protocol['extractor']} {protocol['extractor_digest'][:8]}"


def likelihood_protocol(protocol: Mapping[str, Any]) -> str:
    """Returns how a likelihood was obtained."""
    size = "x".join(map(str, protocol["shape"]))
    parts = [
        f"{protocol['kind']}, {protocol['num_real']:,} {protocol['split']} items",
        f"of {protocol['data']} {protocol['data_fingerprint'][:8]}, {size}, {protocol['levels']} levels",
        protocol["estimator"],
    ]
    return " ".join(filter(None, parts))


def copies_protocol(name: str, copies: Mapping[str, Any]) -> str:
    """Returns what a number about copies says."""
    if "length" in copies:
        return passages_protocol(name, copies)
    if name == COPIES["share"]:
        return (
            f"of {copies['num']:,} samples, nearer to one of {copies['num_train']:,} training images than "
            f"95 % of the {copies['num_test']:,} unseen ones; 0.05 is honest"
        )
    return f"of samples, in that of unseen images (medians), {copies['space']}"


def passages_protocol(name: str, copies: Mapping[str, Any]) -> str:
    """Returns what a number about copies of text says."""
    length, num_train = copies["length"], copies.get("num_train", 0)
    if name != COPIES["share"]:
        return f"characters, all of whose pieces of {length} stand in the training text"
    return (
        f"of {copies.get('num_pieces', 0):,} pieces of {length} characters of {copies.get('num', 0):,} "
        f"samples, those that stand in {num_train:,} characters of training text; floor: the same of "
        f"{copies.get('num_test', 0):,} pieces of unseen text"
    )


def latent_protocol(name: str, latent: Mapping[str, Any]) -> str:
    """Returns what a number about a latent space says."""
    train, test = latent.get("num_codes", (0, 0))
    return {
        "dim": str(latent.get("type", "")),
        "linear_probe": f"share of {test:,} labels told by a linear map of the code, learned from {train:,}",
        "path_length": "way between two samples in features, as a multiple of the straight line",
        "active_units": f"dimensions of the code that vary over {test:,} images",
        "mig": "gap of mutual information with the known factors, 0 to 1",
        "dci": "how far each dimension matters for one factor only, 0 to 1",
    }[{text: key for key, text in LATENT.items()}[name]]
