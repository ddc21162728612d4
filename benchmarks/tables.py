"""The tables of docs/performance.md: each a function of the stored files, by their names in ``page.SOURCES``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Files = dict[str, dict[str, Any]]


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def seconds(value: float) -> str:
    """Seconds with three digits, or milliseconds below a tenth of one."""
    return f"{1e3 * value:.3g} ms" if value < 0.1 else f"{value:.3g} s"


def short(value: float) -> str:
    """Seconds below a second with three digits, as milli- or microseconds."""
    return f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} us"


def percent(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.3g} %"


def span(row: dict[str, Any]) -> str:
    """Median, and from the fastest to the slowest."""
    low, high = seconds(row["fastest_s_per_round"]), seconds(row["slowest_s_per_round"])
    return f"{seconds(row['steady_s_per_round'])} ({low} to {high})"


def rounds(files: Files) -> str:
    """The round of every workload."""
    names = {
        "cohort_cnn": "`cohort_cnn`: 50 clients x 5 steps of 10 images, CNN with 1.2 M parameters",
        "tiny_mlp": "`tiny_mlp`: 20 clients x 10 steps of 10, MLP 64-64-10",
        "tiny_mlp_central": "the same, clip and noise",
        "emnist_natural": "`emnist_natural`: 10 clients of 12 to 418 images, 198 in the mean; batch 20, one epoch",
        "resnet18_cifar": "`resnet18_cifar`: 4 clients x 2 steps of 10 images, 11.2 M parameters",
        "resnet8_cifar": "`resnet8_cifar`: 10 clients x 2 steps of 10 images, 78,000 parameters",
        "char_lstm_text": "`char_lstm_text`: 10 clients x 2 steps of 10 sequences of 80, two layers of 256 units",
        "transformer_text": "`transformer_text`: the same text, two layers of width 64",
        "long_tailed_cnn": "`long_tailed_cnn`: 50 clients of 5 to 500 images, lognormal; the CNN of `cohort_cnn`",
        "long_tailed_mlp": "`long_tailed_mlp`: the same sizes, the MLP of `tiny_mlp`",
    }
    head = ["workload", "compile", "steady round", "examples/s", "GFLOP/s", "of the matmul peak", "round / central"]
    rows = []
    for name, text in names.items():
        if name in files:
            r, ratio = files[name]["round"], files[name]["round_over_central"]
            speeds = [f"{r['examples_per_s']:,.0f}", f"{r['flop_per_s'] / 1e9:.3g}", percent(r["share_of_matmul_peak"])]
            rows.append([text, f"{r['compile_s']:.1f} s", span(r), *speeds, f"{ratio:.2f}"])
    return grid(head, rows)


def tails(files: Files) -> str:
    """Ragged cohorts next to equal clients with as many examples."""
    rows = []
    for name in ("long_tailed_cnn", "long_tailed_mlp"):
        if name in files:
            f = files[name]
            waste = [percent(f["padding"]["share_of_batches"]), f"{f['padding']['steps_executed_over_needed']:.2f}"]
            rows.append([f"`{name}`", str(f["settings"]["chunk"]), f"{f['round_over_equal']:.2f}", *waste])
    head = ["workload", "clients in a batch", "round, relative to equal clients", "padding in batches"]
    return grid([*head, "steps executed / needed"], rows)


def others(files: Files, name: str) -> str:
    """One comparison with other simulators."""
    if name not in files:
        return ""
    peers, rows = files[name]["peers"], []
    for peer in sorted(peers, key=lambda p: peers[p].get("steady_s_per_round", float("inf"))):
        row = peers[peer]
        if "error" in row:
            rows.append([peer, "", row["error"], "", "", ""])
            continue
        version = row["versions"].get({"pytorch": "torch", "flower": "flwr"}.get(peer, peer), "")
        setting = ", ".join(f"{key} {value}" for key, value in row["setting"].items())
        ratio, differs = f"{row['over_fljax']:.2f}", f"{row['difference']:.0e}" if peer != "fljax" else ""
        rows.append([peer, version, span(row), ratio, differs, setting])
    return grid(["", "version", "round", "relative to fljax", "changes differ by", "best setting"], rows)


def tried(files: Files, name: str) -> str:
    """What the settings that were tried cost, in one sentence a peer."""
    if name not in files:
        return ""
    lines = []
    for peer, row in files[name]["peers"].items():
        parts = []
        for one in row.get("settings_tried", []):
            setting = " ".join(str(value) for value in one["setting"].values())
            parts.append(f"{setting}: " + ("failed" if "error" in one else seconds(one["seconds"])))
        keys = row["settings_tried"][0]["setting"] if parts else {}
        lines.append(f"{peer} ({', '.join(keys)}) {'; '.join(parts)}.")
    return " ".join(lines) + "\n"


def privacy(files: Files) -> str:
    """What privacy costs a round."""
    names = {
        "cohort_cnn_central": "the server, fixed clip",
        "cohort_cnn_adaptive": "the server, adaptive clip",
        "cohort_cnn_local": "every client, Gaussian (local)",
        "cohort_cnn_discrete_gaussian": "every client a share, discrete Gaussian",
        "cohort_cnn_skellam": "every client a share, Skellam",
    }
    rows = []
    for name, text in names.items():
        if name in files:
            r, plain = files[name]["round"], files[name]["plain"]
            each = (r["steady_s_per_round"] - plain["steady_s_per_round"]) / files[name]["settings"]["cohort"]
            rows.append([text, span(r), f"{files[name]['round_over_plain']:.2f}", f"{1e3 * each:.2g} ms"])
    return grid(["who clips and noises", "steady round", "relative to plain", "more, for each client"], rows)


def dropout(files: Files) -> str:
    """What dropout of neurons saves a round."""
    names = {
        "cohort_cnn_keep0.5_compact": ["compact", "0.5"],
        "cohort_cnn_keep0.25_compact": ["compact", "0.25"],
        "cohort_cnn_keep1_compact_tiers": ["compact", "1, 0.5, 0.25"],
        "cohort_cnn_keep0.25_masked": ["masked", "0.25"],
    }
    rows = []
    for name, cells in names.items():
        if name in files:
            f = files[name]
            ratios = [f"{f['flops_over_plain']:.3g}", f"{f['round_over_plain']:.2f}", f"{f['round_over_central']:.2f}"]
            ratios[2] = ratios[2] if name.endswith("5_compact") else ""
            rows.append([*cells, *ratios, f"{f['round']['flop_per_s'] / 1e9:.3g}"])
    head = ["execution", "keep", "FLOPs", "round, relative to dense", "to the same steps of the small model centrally"]
    return grid([*head, "GFLOP/s"], rows)


def chunks(files: Files) -> str:
    """The round of ``cohort_cnn`` by clients per batch."""
    rows = [
        [text, span(files[name]["round"]), percent(files[name]["round"]["share_of_matmul_peak"])]
        for name, text in (
            ("cohort_cnn_chunk1", "1"),
            ("cohort_cnn_chunk2", "2"),
            ("cohort_cnn_chunk10", "10"),
            ("cohort_cnn_chunk0", "50 (all)"),
        )
        if name in files
    ]
    return grid(["clients in a batch", "steady round", "of the matmul peak"], rows)


def sweeps(files: Files) -> str:
    """Trials in one program."""
    rows = []
    for name, text in (
        ("trials_tiny_mlp", "32 trials in one program"),
        ("trials_tiny_mlp_w3", "300 cells: 5 noises x 4 clips x 3 keep rates x 5 seeds, 32 at a time"),
    ):
        if name in files:
            f, s = files[name], files[name]["sweep"]
            cells = [seconds(f["single"]["steady_s_per_round"]), seconds(s["per_trial_steady_s_per_round"])]
            cells += [f"{f['per_trial_over_single']:.2f}", f"{s['compile_s']:.1f} s", seconds(s["all_trials_s"])]
            rows.append([text, *cells, str(f["settings"]["rounds"])])
    head = ["`tiny_mlp`, clip and noise", "round of a single run", "round of one trial", "relative", "compile"]
    return grid([*head, "all trials", "rounds each"], rows)


def whole_sweep(files: Files) -> str:
    """300 trials as a sweep of the command line, as a loop, as processes."""
    if "sweep" not in files:
        return ""
    f = files["sweep"]
    rows = [
        ["`fljax sweep digits_tuning`, from a warm cache to the page", f["sweep"]],
        ["of that the compiled batches alone", f["batches"]],
        ["one trial after the other with one compiled program", f["loop"]],
        ["one process a trial, `fljax run`", f["processes"]],
        ["the same sweep again: nothing is left", f["sweep"]["second_start"]],
        ["its page, without PDF and PNG", f["sweep"].get("page")],
    ]
    cells = [[text, seconds(row["wall_s"]), seconds(row["cpu_s"])] for text, row in rows if row]
    return grid(["300 trials", "clock", "processor"], cells)


def store(files: Files) -> str:
    """What keeping 100,000 trials takes."""
    if "store" not in files:
        return ""
    names = {
        "plan": "plan the trials",
        "write_all_shards": "write, flush and check all shards",
        "finish": "complete the manifest",
        "second_start": "start again: find that nothing is left",
        "open": "open the results",
        "one_curve": "one curve",
        "mean_and_std_by_cell": "mean and deviation of every cell, in SQL",
        "mean_curve_by_axis": "mean curves over 10,000,000 rows, in SQL",
        "duplicates": "look for duplicates",
    }
    row = max(files["store"]["rows"], key=lambda r: r["trials"])
    head = [f"{row['trials']:,} trials x {row['rounds']} rounds x 4 metrics, {row['shards']} shards", "clock"]
    return grid(head, [[text, seconds(row["seconds"][name])] for name, text in names.items()])


def scaling(files: Files) -> str:
    """Time by clients, cohort, rounds, parameters, devices."""
    rows = []
    for axis, values in files.get("scaling", {"axes": {}})["axes"].items():
        for row in values:
            growth = f"x {row['growth']:.2f}" if "growth" in row else ""
            growth = f"{row['speedup']:.2f} times as fast" if row.get("speedup", 1.0) != 1.0 else growth
            memory = f"{row['temporary_bytes'] / 1e6:.1f} MB" if "temporary_bytes" in row else ""
            rows.append([axis, f"{row['value']:,}", span(row), growth, percent(row["share_of_matmul_peak"]), memory])
    return grid(["axis", "value", "steady round", "call, per doubling", "of the matmul peak", "temporary"], rows)


def memory(files: Files) -> str:
    """Temporary bytes by cohort and chunk."""
    if "memory" not in files:
        return ""
    by_cohort: dict[int, list[str]] = {}
    for row in files["memory"]["rows"]:
        by_cohort.setdefault(row["cohort"], []).append(f"{row['temporary_bytes'] / 1e6:.1f} MB")
    whole = {row["cohort"]: f"{row['cohort_bytes'] / 1e6:.0f} MB" for row in files["memory"]["rows"]}
    rows = [[f"{cohort:,}", *cells, whole[cohort]] for cohort, cells in by_cohort.items()]
    chunk = [f"chunk {c}" for c in files["memory"]["settings"]["chunks"]]
    return grid(["cohort", *chunk, "cohort x parameters"], rows)


def starts(files: Files) -> str:
    """Compilation and imports."""
    if "compile_cohort_cnn" not in files:
        return ""
    f, rows = files["compile_cohort_cnn"], []
    for text, row in (
        ("compile `cohort_cnn`, cold cache", f["cold"]["compile"]),
        ("the same, warm cache", f["warm"]["compile"]),
        ("`import jax`", f["import"]["jax"]),
        ("then the parts of a round", f["import"]["parts_after_jax"]),
        ("or all of fljax, with the command line", f["import"]["all_after_jax"]),
    ):
        rows.append([text, *(f"{row[key]:.2f} s" for key in ("median", "fastest", "slowest"))])
    return grid(["", "median", "fastest", "slowest"], rows)


def longest(files: Files) -> str:
    """The operations of ``cohort_cnn`` that take longest."""
    if "profile_cohort_cnn" not in files:
        return ""
    f = files["profile_cohort_cnn"]
    rows = [
        [f"`{row['name']}`", f"{row['calls_per_round']:.0f}", seconds(row["s_per_round"])] for row in f["longest"][:6]
    ]
    return grid(["operation", "times a round", "together"], rows)


def convolutions(files: Files) -> str:
    """Every way to compute a convolution, by shape: time of a step relative to patches, alone and batched."""
    if "convolutions" not in files:
        return ""
    ways, rows = ("shifted products", "the backend's", "2x1", "4x1", "2x2", "4x2"), []
    for entry in files["convolutions"]["rows"]:
        s, alone, batched = entry["shape"], entry["one_client_s"], entry["batched_s"]
        cells = [
            f"{alone[w] / alone['patches']:.2f} / {batched[w] / batched['patches']:.2f}" if w in alone else ""
            for w in ways
        ]
        layer = f"{s['name']}: {s['size']}x{s['size']}x{s['inputs']} -> {s['outputs']}, window {s['window']}"
        layer += f", stride {s['stride']}" if s["stride"] > 1 else ""
        rows.append(
            [layer, f"{1e6 * alone['patches']:.0f} / {1e6 * batched['patches']:.0f} us", *cells, entry["chosen"]]
        )
    return grid(["layer, 10 images", "patches", *ways, "chosen"], rows)


def layers(files: Files) -> str:
    """Pools, norms and embeddings by clients at a time: ours, and other ways relative to it."""
    if "layers" not in files:
        return ""
    entries, rows = files["layers"]["layers"], []
    for entry in entries:
        clients = entry["clients"]
        for way in list(next(iter(clients.values())))[1:]:
            cells = [f"{short(s['ours'])}, {s[way] / s['ours']:.2f}" for s in clients.values()]
            rows.append([entry["layer"], way, *cells])
    head = [f"{n} client{'s' * (n != '1')} at a time" for n in entries[0]["clients"]]
    return grid(["layer", "other way", *head], rows)


def large_batches(files: Files) -> str:
    """Convolutions of large batches, of all images at once and in blocks."""
    if "layers" not in files:
        return ""
    rows = []
    for entry in files["layers"]["large"]:
        s, ways = entry["shape"], [entry["at once"], entry["in blocks"]]
        layer = f"{s['name']}: {s['size']}x{s['size']}x{s['inputs']} -> {s['outputs']}"
        cells = [cell for w in ways for cell in (seconds(w["seconds"]), f"{w['temporary_bytes'] / 1e6:.0f} MB")]
        rows.append([layer, f"{s['batch']:,}", *cells])
    return grid(["layer", "images", "at once", "temporary", "in blocks", "temporary"], rows)


def dense(files: Files) -> str:
    """Rounds with weight gradients as outer products relative to products, by model, batch and clients at a time."""
    if "dense" not in files:
        return ""
    entries = files["dense"]["rows"]
    head = ["MLP", "examples of a batch", *(f"{n} client{'s' * (n != '1')} at a time" for n in entries[0]["clients"])]
    rows = [
        [
            row["model"],
            str(row["examples"]),
            *(f"{1e6 * s['product_s']:.3g} us, {s['relative']:.2f}" for s in row["clients"].values()),
        ]
        for row in entries
    ]
    return grid(head, rows)


def widths(files: Files) -> str:
    """What a client's step costs by clients at a time."""
    if "widths" not in files:
        return ""
    entries = files["widths"]["rows"]
    rows = [
        [row["model"], f"{row['parameters']:,}", *(f"{1e6 * s:.3g}" for s in row["seconds"].values())]
        for row in entries
    ]
    return grid(["MLP", "parameters", *entries[0]["seconds"]], rows)


def errors(files: Files) -> str:
    """The largest errors of the ways over all shapes."""
    if "convolutions" not in files:
        return ""
    worst: dict[str, float] = {}
    for entry in files["convolutions"]["rows"]:
        for way, value in entry["error"].items():
            worst[way] = max(worst.get(way, 0.0), value)
    return "; ".join(f"{way} {value:.1e}" for way, value in worst.items()) + ".\n"


def streaming(files: Files) -> str:
    """Data on disk against data on the device."""
    if "streaming" not in files:
        return ""
    f = files["streaming"]
    texts = {"resident": "all on the device", "streamed": "memory-mapped files, streamed"}
    rows = [[text, span(f[way]), f"{f[way]['data_bytes'] / 1e6:.0f} MB"] for way, text in texts.items()]
    rows[1].append(f"{f['streamed_over_resident']:.2f}")
    return grid(["training data", "steady round", "on the device", "relative"], [[*rows[0], "1.00"], rows[1]])


def precision(files: Files) -> str:
    """Accuracy in bfloat16 next to float32, the same seeds in pairs."""
    if "precision" not in files:
        return ""
    names = {
        "digits_fedavg": "`digits_fedavg`, an MLP, no privacy",
        "digits_fedavg_cnn": "the same with a CNN of 8 and 16 channels",
        "digits_dp_fedavg": "`digits_dp_fedavg`, the MLP at ε = 8",
    }
    rows = []
    for name, text in names.items():
        f = files["precision"]["rows"][name]
        means = [f"{100 * f['mean'][way]:.2f} %" for way in ("float32", "bfloat16")]
        change = f"{100 * f['difference']:+.2f} ± {100 * f['standard_error']:.2f}"
        told = "yes" if f["within_noise"] else "no"
        rows.append([text, *means, change, f"{100 * f['deviation_over_seeds']:.2f}", told])
    head = ["test accuracy", "float32", "bfloat16", "difference in pairs, points", "float32 over seeds, points"]
    return grid([*head, "within noise"], rows)


def hardware(files: Files) -> str:
    """The machine, in one line."""
    one = next(iter(files.values()))["provenance"]
    peaks = [f["round"]["matmul_peak_flop_per_s"] for f in files.values() if "round" in f]
    low, high = f"{min(peaks) / 1e9:.0f}", f"{max(peaks) / 1e9:.0f}"
    return (
        f"{one['cpu']}, {one['cores']} cores, JAX {one['jax']}, Python {one['python']}; the product of two matrices of "
        f"2,048 rows ran at {low} to {high} GFLOP/s in the calls below. Medians, in brackets the fastest and slowest.\n"
    )


TABLES: dict[str, Callable[[Files], str]] = {
    "hardware": hardware,
    "rounds": rounds,
    "tails": tails,
    "vs_cohort_cnn": lambda files: others(files, "vs_cohort_cnn"),
    "vs_tiny_mlp": lambda files: others(files, "vs_tiny_mlp"),
    "tried_cohort_cnn": lambda files: tried(files, "vs_cohort_cnn"),
    "tried_tiny_mlp": lambda files: tried(files, "vs_tiny_mlp"),
    "convolutions": convolutions,
    "errors": errors,
    "layers": layers,
    "large_batches": large_batches,
    "dense": dense,
    "widths": widths,
    "chunks": chunks,
    "privacy": privacy,
    "dropout": dropout,
    "sweeps": sweeps,
    "whole_sweep": whole_sweep,
    "store": store,
    "scaling": scaling,
    "memory": memory,
    "streaming": streaming,
    "starts": starts,
    "longest": longest,
    "precision": precision,
}
